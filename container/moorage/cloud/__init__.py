"""SageMaker itself, by boto3: push, submit, tune, watch, deploy. Nothing here is imported where a job runs."""
