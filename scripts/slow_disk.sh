#!/usr/bin/env bash
# Runs a command that gets no more than RATE from the disk, each way: how overlap fares where reading
# takes longer for the same processor time, as on a disk slower than this machine's.
#
#     scripts/slow_disk.sh 400MB cargo bench --bench step
#
# The disk is the one under target/ (SEMOE_BENCH_DIR). It needs root, for a cgroup.
set -euo pipefail

die() { echo "slow_disk: $*" >&2; exit 1; }

[ $# -ge 2 ] || die "usage: slow_disk.sh RATE COMMAND..."
[ "$(id -u)" -eq 0 ] || die "limiting a disk needs a cgroup: run as root"
rate=$(numfmt --from=auto --suffix=B "$1" 2>/dev/null) || die "\"$1\" is no rate: write 400MB"
rate=${rate%B}
shift

folder=${SEMOE_BENCH_DIR:-${CARGO_TARGET_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}}
# A partition is limited by the disk that it is on.
device=$(stat -c '%Hd:%Ld' "$folder")
sys=/sys/dev/block/$device
[ -e "$sys" ] || die "$folder is on no disk of its own (device $device)"
[ ! -e "$sys/partition" ] || device=$(cat "$sys/../dev")

if [ -d /sys/fs/cgroup/blkio ]; then
    group=/sys/fs/cgroup/blkio/semoe-slow-$$
    mkdir "$group"
    echo "$device $rate" >"$group/blkio.throttle.read_bps_device"
    echo "$device $rate" >"$group/blkio.throttle.write_bps_device"
else
    group=/sys/fs/cgroup/semoe-slow-$$
    echo +io >/sys/fs/cgroup/cgroup.subtree_control
    mkdir "$group"
    echo "$device rbps=$rate wbps=$rate" >"$group/io.max"
fi
trap 'rmdir "$group" 2>/dev/null || true' EXIT
(
    echo $BASHPID >"$group/cgroup.procs"
    exec "$@"
)
