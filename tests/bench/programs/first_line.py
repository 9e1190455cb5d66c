import time

print(f"first line at {time.time()}", flush=True)
