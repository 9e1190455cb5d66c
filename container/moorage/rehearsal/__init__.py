"""SageMaker on this machine: a job's whole life, interruptions and checkpoint upload included, in real containers.

`life.rehearse(job, tell)` is the way in; `job.Job` says what to rehearse, `outcome.Outcome` what came of it.
"""
