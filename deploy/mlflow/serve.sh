#!/bin/sh
# MLflow on PostgreSQL and an S3 store, which must run by then; the bucket is made if it is missing. Clients
# need to reach MLflow alone: artifacts go through it. Further arguments are the server's.
#
# The environment says where the stores are and how to log in:
#   MLFLOW_BACKEND_STORE_URI   postgresql+psycopg2://USER@HOST:PORT/DATABASE
#   PGPASSWORD                 its password
#   MLFLOW_S3_ENDPOINT_URL     http://HOST:PORT
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
#   MLFLOW_BUCKET              default: mlflow
# and where MLflow listens:
#   MLFLOW_HOST, MLFLOW_PORT   default: 127.0.0.1 and 5000
#
# `mlflow` and `python3` are the first in PATH.
set -eu

export MLFLOW_BACKEND_STORE_URI MLFLOW_S3_ENDPOINT_URL PGPASSWORD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
export AWS_DEFAULT_REGION="${AWS_DEFAULT_REGION:-us-east-1}"
export MLFLOW_BUCKET="${MLFLOW_BUCKET:-mlflow}"
# Nothing is reported to MLflow's makers. Job runners would take several times the memory of the server, for jobs that nobody
# starts here.
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

python3 - <<'PYTHON'
import os
import boto3

s3 = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
bucket = os.environ["MLFLOW_BUCKET"]
if bucket not in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
    s3.create_bucket(Bucket=bucket)
PYTHON

# A server refuses requests to names that it does not know, 403, while its /health answers.
exec mlflow server --host "${MLFLOW_HOST:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}" --workers 1 \
    --allowed-hosts 'mlflow:*,localhost:*,127.0.0.1:*' \
    --serve-artifacts --artifacts-destination "s3://$MLFLOW_BUCKET/artifacts" "$@"
