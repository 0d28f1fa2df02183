#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What is kept here, kept on a disk: --near DIR, also where the disk is far too small.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ -w /dev/fuse ] || { echo '1..0 # SKIP no right to /dev/fuse'; exit 0; }

case_nothing_of_it_has_a_name() {
	random_file far 8M
	mkdir disk
	serve s far
	mount_file m "$(at s far)" f --near disk --pull none
	same f far
	is "$(ls -A disk)" ''
	printf hello | timeout 30 dd of=f conv=notrunc,fsync status=none
	is "$(head -c 5 far)" hello
	unmount_file m f
	exits 3 timeout 30 "$REMORA" mount --near nowhere "$(at s far)" f
	holds stderr nowhere
}

case_a_disk_that_is_too_small_is_used_as_far_as_it_goes() {
	[ "$(id -u)" = 0 ] && unshare --mount true 2>/dev/null || skip 'only root can mount a small file system'
	random_file far 48M
	random_file new 48M
	mkdir disk
	serve s far
	cat >inside <<-END
		mount -t tmpfs -o size=6m none disk && exec "$REMORA" "\$@"
	END
	start m unshare --mount --propagation slave bash "$dir/inside" mount --foreground --near disk "$(at s far)" "$dir/f"
	echo "${pid_of[m]}" >>mounts
	timeout 90 nsenter -t "${pid_of[m]}" --mount bash -ec '
		cd "$1"
		cmp f far
		dd if=new of=f bs=1M conv=notrunc,fsync status=none
		cmp f new
		[ "$(stat -f -c %b disk)" -le 1536 ]
	' - "$dir"
	exits 0 timeout 60 "$REMORA" unmount "$dir/f"
	finished m
	is "$status_of" 0
	same far new
}

run_cases
