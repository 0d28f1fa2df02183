#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What is kept here, kept on a disk: mount --near DIR over kills, damage, a second user and a disk that is far too small; and
# remora cache.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ -w /dev/fuse ] || { echo '1..0 # SKIP no right to /dev/fuse'; exit 0; }

value() { # FILE NAME: of its status
	"$REMORA" status --json "$1" | jq ".targets[0].$2? // .$2"
}

# Its process is gone at once, its mount with it.
kill_mount() { # NAME FILE
	stop "$1" KILL
	umount -l "$2" 2>/dev/null || fusermount3 -uz "$2"
}

flip() { # FILE OFFSET
	python3 - "$1" "$2" <<-'END'
		import sys
		with open(sys.argv[1], 'r+b') as f:
		    f.seek(int(sys.argv[2]))
		    byte = f.read(1)
		    f.seek(int(sys.argv[2]))
		    f.write(bytes([byte[0] ^ 1]))
	END
}

case_dirty_data_is_pushed_and_clean_data_not_fetched_again_after_a_kill() {
	random_file far 16M
	random_file new 3M
	mkdir disk
	serve s far
	mount_file m "$(at s far)" f --near disk --push-interval 1h
	same f far
	dd if=new of=f bs=1M seek=5 conv=notrunc status=none
	cp f want
	kill_mount m f
	mount_file m "$(at s far)" f --near disk
	same f want
	is "$(value f pulled_bytes)" 0
	unmount_file m f
	same far want
	mount_file m "$(at s far)" f --near disk
	same f want
	is "$(value f pulled_bytes)" 0
	is "$(value f dirty_bytes)" 0
	unmount_file m f
}

# The writer tells what it has written and what it has made safe; a random moment, several times.
case_kills_under_load_lose_nothing_that_was_written() {
	local i writer
	random_file far 8M
	cp far want
	mkdir disk
	serve s far
	for i in 1 2 3 4; do
		mount_file m "$(at s far)" f --near disk --push-interval 20ms
		same f want
		: >written
		python3 - f written <<-'END' 2>writer.err &
			import os, random, sys
			f = os.open(sys.argv[1], os.O_RDWR)
			log = os.open(sys.argv[2], os.O_WRONLY)
			while True:
			    data = os.urandom(4096 * random.randint(1, 40))
			    at = 4096 * random.randint(0, 2000)
			    data = data[:8 * 1024 * 1024 - at]
			    os.pwrite(f, data, at)
			    os.write(log, at.to_bytes(8, 'little') + len(data).to_bytes(8, 'little') + data)
		END
		writer=$!
		echo $writer >>pids
		until [ "$(stat -c %s written)" -gt $((i * 700000)) ]; do :; done
		stop m KILL
		wait $writer || true
		umount -l f 2>/dev/null || fusermount3 -uz f
		python3 - want written <<-'END'
			import sys
			log = open(sys.argv[2], 'rb').read()
			with open(sys.argv[1], 'r+b') as f:
			    while len(log) >= 16:
			        at, n = (int.from_bytes(log[i:i + 8], 'little') for i in (0, 8))
			        f.seek(at)
			        f.write(log[16:16 + n])
			        log = log[16 + n:]
		END
		# the write that was under way is there, or is not: page by page
		mount_file m "$(at s far)" f --near disk
		cp f after
		python3 - want after <<-'END'
			import sys
			a, b = (open(n, 'rb').read() for n in sys.argv[1:])
			pages = [i for i in range(0, len(a), 4096) if a[i:i + 4096] != b[i:i + 4096]]
			assert not pages or pages[-1] - pages[0] < 40 * 4096, pages
		END
		cp after want
		unmount_file m f
		same far want
	done
}

case_damage_of_clean_data_is_found_and_fetched_again() {
	random_file far 4M
	mkdir disk
	serve s far
	mount_file m "$(at s far)" f --near disk
	same f far
	unmount_file m f
	exits 0 "$REMORA" cache verify disk
	flip disk/data 1000000
	exits 4 "$REMORA" cache verify disk
	holds stdout 'fetched again'
	mount_file m "$(at s far)" f --near disk --pull none
	same f far
	less "$(value f pulled_bytes)" 200000
	less 0 "$(value f pulled_bytes)"
	less 0 "$(value f near_damaged_bytes)"
	unmount_file m f
	exits 0 "$REMORA" cache verify disk
}

case_damage_of_dirty_data_that_was_safe_is_an_error() {
	local at
	random_file far 4M
	mkdir disk
	serve s far
	mount_file m "$(at s far)" f --near disk --push-interval 20ms
	same f far
	stop s
	# with nobody there nothing is pushed, and what is written is made safe here
	head -c 65536 /dev/zero | tr '\0' q | dd of=f bs=64k seek=7 conv=notrunc status=none
	until [ "$(syncs_behind_q disk/journal)" -ge 2 ]; do
		printf r | dd of=f bs=64k seek=9 conv=notrunc status=none
	done
	kill_mount m f
	serve s far
	at=$(python3 -c 'print(open("disk/journal", "rb").read().find(b"q" * 64))')
	flip disk/journal $((at + 5000))
	exits 4 "$REMORA" mount --near disk "$(at s far)" f
	holds stderr 'bytes 458752 to'
	holds stderr 'remora cache drop'
	exits 4 "$REMORA" cache verify disk
	exits 6 "$REMORA" cache drop disk
	exits 0 "$REMORA" cache drop --force disk
	is "$(ls -A disk)" ''
	mount_file m "$(at s far)" f --near disk
	same f far
	unmount_file m f
}

syncs_behind_q() { # JOURNAL: how many it tells of
	python3 - "$1" <<-'END'
		import sys
		data = open(sys.argv[1], 'rb').read()
		at = data.find(b'q' * 64)
		print(sum(data[i:i + 4] == b'RNJ1' and data[i + 4] == 5 and at > 0
		          for i in range(max(at, 0) // 64 * 64, len(data), 64)))
	END
}

case_a_second_mount_is_refused_and_told_who_has_it() {
	random_file far 1M
	random_file other 2M
	mkdir disk
	serve s far other
	mount_file m "$(at s far)" f --near disk
	exits 3 "$REMORA" mount --near disk "$(at s far)" g
	holds stderr "process ${pid_of[m]}"
	holds stderr "$dir/f"
	exits 3 "$REMORA" cache drop --force disk
	exits 0 "$REMORA" cache list disk
	holds stdout 'in use'
	unmount_file m f
	exits 1 "$REMORA" mount --near disk "$(at s other)" g
	holds stderr '/far'
	holds stderr '/other'
	mount_file m "$(at s far)" f --near disk --chunk 16K
	holds m.err 'keeps them'
	unmount_file m f
	exits 3 timeout 30 "$REMORA" mount --near nowhere "$(at s far)" f
	holds stderr nowhere
}

case_read_only_keeps_what_is_clean_and_refuses_what_is_dirty() {
	random_file far 1M
	mkdir disk
	serve s far
	mount_file m "$(at s far)" f --near disk --read-only
	same f far
	unmount_file m f
	mount_file m "$(at s far)" f --near disk --push-interval 1h
	is "$(value f pulled_bytes)" 0
	printf hello | dd of=f conv=notrunc status=none
	kill_mount m f
	exits 1 "$REMORA" mount --read-only --near disk "$(at s far)" f
	holds stderr 'not pushed'
	exits 0 "$REMORA" cache list --json disk
	is "$(jq '.caches[0].dirty_bytes' stdout)" 4096
	exits 6 "$REMORA" cache drop disk
	holds stderr '4 KiB'
	mount_file m "$(at s far)" f --near disk
	unmount_file m f
	is "$(head -c 5 far)" hello
	exits 0 "$REMORA" cache drop disk
}

case_a_budget_holds_on_the_disk() {
	random_file far 64M
	random_file new 64M
	mkdir disk
	serve s far
	mount_file m "$(at s far)" f --near disk --budget 16M
	same f far
	[ "$(du -sk disk | cut -f1)" -le 16384 ]
	dd if=new of=f bs=1M conv=notrunc status=none
	same f new
	[ "$(du -sk disk | cut -f1)" -le 20480 ]
	unmount_file m f
	same far new
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
