#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU slice. After a stop the same command continues the
# run, also on a new slice that replaces a preempted one.
#
#   TPU_NAME=NAME ZONE=ZONE NFS=10.0.0.2:/share docs/launch/tpu_pod.sh \
#     --config=configs/imagenet2012.py --config.data_dir=/mnt/shared/imagenet \
#     --workdir=/mnt/shared/runs/imagenet
#
# To stop the run and save its state, send a signal to one worker (Ctrl-C ends only gcloud):
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 \
#     --command='pkill -TERM -f "[g]ooglenet_flax.main"'
set -euo pipefail

: "${TPU_NAME:?must name the slice}" "${ZONE:?must name the zone of the slice}"
: "${NFS:?must be HOST:/SHARE of the file system for all workers, such as Filestore}"
MOUNT=${MOUNT:-/mnt/shared}
PYTHON=${PYTHON:-python3} # Command on the workers for Python 3.11 to 3.14.

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

setup="set -eu
sudo apt-get -qq update
sudo apt-get -qq install nfs-common python3-venv
if ! mountpoint -q '$MOUNT'; then
  sudo mkdir -p '$MOUNT'
  sudo mount -t nfs '$NFS' '$MOUNT'
fi
mkdir -p googlenet_flax
tar -xzf googlenet_flax.tar.gz -C googlenet_flax
cd googlenet_flax
'$PYTHON' -m venv .venv
.venv/bin/pip install -q -c constraints.txt '.[tpu]'"

train="cd googlenet_flax && exec .venv/bin/python -m googlenet_flax.main"
for argument in "$@"; do
  train+=" $(printf %q "$argument")"
done
train+=" --config.distributed=True"

# Copies the working tree to each worker's own home, so that no two installations collide.
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git ls-files -z --cached --others --exclude-standard | tar -czf "$folder/googlenet_flax.tar.gz" --null -T -
gcloud compute tpus tpu-vm scp "$folder/googlenet_flax.tar.gz" "$TPU_NAME:" \
  --zone="$ZONE" --worker=all
on_all "$setup"
on_all "$train"
