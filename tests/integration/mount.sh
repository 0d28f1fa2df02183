#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# remora mount and remora unmount: what comes up, what is refused, and that no way of ending a mount loses what can be saved.
. "$(dirname "$0")/lib.sh"

[ -w /dev/fuse ] || { echo '1..0 # SKIP no right to /dev/fuse'; exit 0; }

# Writes TEXT into FILE at OFF; with a fourth argument behind fsync.
put() { # FILE OFF TEXT [fsync]
	printf '%s' "$3" | timeout 30 dd of="$1" bs=1M seek="$2" oflag=seek_bytes conv="notrunc${4:+,fsync}" status=none
}

reads() { # FILE OFF TEXT
	is "$(timeout 30 dd if="$1" bs=1 skip="$2" count=${#3} status=none)" "$3" "$1 at $2"
}

# Waits for a line of a process's stderr.
until_said() { # FILE TEXT
	local i
	for ((i = 0; i < 1500; i++)); do
		grep -qF -- "$2" "$1" && return
		read -r -t 0.02 <> <(:) || :
	done
	holds "$1" "$2"
}

# Until it takes writes again.
until_written() { # FILE OFF TEXT
	local i
	for ((i = 0; i < 1500; i++)); do
		put "$@" 2>/dev/null && return
		read -r -t 0.02 <> <(:) || :
	done
	put "$@"
}

status_number() { # FILE NAME
	timeout 30 "$REMORA" status --json "$1" | sed -n "s/^ *\"$2\": \([0-9]*\),\?$/\1/p" | head -n 1
}

# Everything that was written is dirty until somebody asks: nothing is pushed by itself.
mount_lazy() { # NAME SPEC FILE [OPTION]...
	mount_file "$@" --push-interval 1h
}

outside_unmount() { # FILE
	if [ "$(id -u)" = 0 ]; then timeout 30 umount "$1"; else timeout 30 fusermount3 -u "$1"; fi
}

# ---- coming up ----

case_a_mount_in_the_background_is_ready_when_the_command_returns() {
	random_file far 4M
	serve s far
	exits 0 timeout 30 "$REMORA" mount "$(at s)" f
	holds stdout "mounted $(at s) on $dir/f (4 MiB)"
	same f far
	put f 100000 'hello there' fsync
	reads far 100000 'hello there'
	exits 0 timeout 30 "$REMORA" unmount f
	[ ! -e f ]
	same far far
	nothing_mounted
	no_control_socket || find run -name 'serve-*' | grep .
}

case_a_mount_of_a_local_file() {
	random_file far 1M
	cp far before
	mount_file m "$dir/far" f
	same f before
	put f 5 'some text'
	unmount_file m f
	reads far 5 'some text'
}

case_a_mount_point_that_was_there_stays() {
	random_file far 64K
	: >f
	mount_file m far f
	same f far
	unmount_file m f
	[ -f f ] && [ ! -s f ]
}

case_ready_fd_gets_the_path() {
	local path
	random_file far 64K
	path=$(timeout 30 "$REMORA" mount --quiet --ready-fd 7 far f 7>&1 >/dev/null)
	is "$path" "$dir/f"
	exits 0 timeout 30 "$REMORA" unmount "$dir/f"
	nothing_mounted
}

case_json_tells_what_was_mounted() {
	random_file far 64K
	exits 0 timeout 30 "$REMORA" mount --json --read-only far f
	holds stdout "\"mounted\":\"$dir/f\""
	holds stdout '"size":65536'
	holds stdout '"read_only":true'
	exits 0 timeout 30 "$REMORA" unmount --json f
	holds stdout "\"unmounted\":\"$dir/f\""
}

case_read_only_refuses_writers() {
	random_file far 64K
	mount_file m far f --read-only
	! put f 0 'x' 2>/dev/null
	same f far
	unmount_file m f
}

case_direct_keeps_nothing_back() {
	random_file far 1M
	serve s far
	mount_file m "$(at s)" f --direct
	same f far
	put f 12345 'straight there'
	reads far 12345 'straight there'
	put far 0 'changed behind it'
	reads f 0 'changed behind it'
	unmount_file m f
}

case_a_budget_holds_while_everything_is_read() {
	random_file far 16M
	serve s far
	mount_file m "$(at s)" f --budget 8M
	same f far
	less "$(status_number f local_bytes)" 8388608
	unmount_file m f
}

case_only_the_first_range_is_pulled() {
	random_file far 8M
	serve s far
	mount_file m "$(at s)" f --pull none --pull first=1M+1M
	exits 0 timeout 30 "$REMORA" pull f 1M+1M
	is "$(status_number f local_bytes)" 1048576
	unmount_file m f
}

# ---- refused ----

case_mount_points_that_are_refused() {
	random_file far 64K
	mkdir d
	echo text >full
	exits 1 timeout 30 "$REMORA" mount far d
	holds stderr 'is a directory'
	exits 1 timeout 30 "$REMORA" mount far full
	holds stderr 'is not empty'
	exits 3 timeout 30 "$REMORA" mount far nowhere/f
	holds stderr 'nowhere'
	mount_file m far f
	exits 3 timeout 30 "$REMORA" mount far f
	holds stderr 'mounted there already'
	same f far
	unmount_file m f
	is "$(cat full)" text
}

case_what_the_command_line_does_not_take() {
	random_file far 64K
	exits 2 "$REMORA" mount far
	exits 2 "$REMORA" mount --pull some far f
	holds stderr 'first=RANGE'
	exits 2 "$REMORA" mount --pull first=5-1 far f
	exits 2 "$REMORA" mount --direct --budget 8M far f
	holds stderr 'with --direct'
	exits 2 "$REMORA" mount --chunk 5000 far f
	exits 2 "$REMORA" mount --deadline 0 far f
	exits 2 timeout 30 "$REMORA" mount --pull first=1M far f
	holds stderr 'beyond the resource'
	nothing_mounted
	[ ! -e f ]
}

case_a_server_that_is_not_there() {
	exits 3 timeout 30 "$REMORA" mount "$(at nobody)" f
	holds stderr 'is the server running'
	exits 3 timeout 30 "$REMORA" mount missing f
	[ ! -e f ]
	no_control_socket
}

case_unmounting_what_is_not_mounted() {
	: >f
	exits 3 timeout 30 "$REMORA" unmount f
	exits 3 timeout 30 "$REMORA" unmount missing
}

case_a_directory_that_others_may_write_to_is_no_runtime_directory() {
	random_file far 64K
	mkdir -m 777 run
	exits 3 timeout 30 "$REMORA" mount far f
	holds stderr 'others may write'
	nothing_mounted
	chmod 700 run
}

# ---- ending ----

case_unmount_makes_safe_what_nobody_synced() {
	random_file far 4M
	cp far model
	serve s far
	mount_lazy m "$(at s)" f
	put f 1000000 'never synced'
	put model 1000000 'never synced'
	unmount_file m f
	same far model
}

case_who_has_it_open_is_not_unmounted() {
	random_file far 1M
	mount_file m far f
	exec 9<f
	exits 1 timeout 30 "$REMORA" unmount f
	holds stderr '--lazy'
	same f far
	put f 0 'still writable'
	exec 9<&-
	unmount_file m f
	reads far 0 'still writable'
}

case_lazily_who_has_it_open_goes_on() {
	random_file far 1M
	serve s far
	mount_lazy m "$(at s)" f
	exec 9<>f
	exits 0 timeout 30 "$REMORA" unmount --lazy f
	holds stderr 'has it open'
	nothing_mounted
	[ ! -e f ]
	printf 'behind its back' >&9
	exec 9>&-
	finished m
	is "$status_of" 0
	reads far 0 'behind its back'
}

case_force_tells_what_is_lost() {
	random_file far 1M
	cp far before
	serve s far
	mount_lazy m "$(at s)" f --pull all
	exits 0 timeout 30 "$REMORA" pull f all
	put f 0 'this will be lost'
	stop s KILL
	exits 0 timeout 30 "$REMORA" unmount --force f
	holds stderr 'are lost'
	finished m
	is "$status_of" 6
	same far before
	nothing_mounted
}

# A mount with its data here, some of it written, and the server gone.
dead_server() { # [OPTION]...
	random_file far 4M
	cp far model
	serve s far
	mount_lazy m "$(at s)" f --deadline 1s "$@"
	exits 0 timeout 30 "$REMORA" pull f all
	put f 2000000 'written before the end'
	put model 2000000 'written before the end'
	stop s KILL
}

case_a_dead_server_lets_the_mount_stay() {
	dead_server
	exits 6 timeout 60 "$REMORA" unmount f
	holds stderr 'not safe'
	holds stderr '--force'
	same f model
	less 0 "$(status_number f unsafe_bytes)"
	put f 3000000 'and more'
	put model 3000000 'and more'
	serve s far
	unmount_file m f
	same far model
}

case_unmount_gives_up_in_time_and_the_mount_stays() {
	dead_server
	exits 6 timeout 60 "$REMORA" unmount --timeout 300ms f
	same f model
	serve s far
	unmount_file m f
	same far model
}

case_who_asked_may_go_away() {
	dead_server --deadline 1h --verbose
	spawn u "$REMORA" unmount f
	until_said m.err 'unmount: asked for'
	! put f 0 'refused meanwhile' 2>/dev/null
	stop u
	until_written f 0 'it is a mount again'
	put model 0 'it is a mount again'
	serve s far
	unmount_file m f
	same far model
}

case_sigterm_makes_safe_and_leaves_nothing() {
	random_file far 1M
	serve s far
	mount_lazy m "$(at s)" f
	put f 77 'before the signal'
	exec 9<f
	stop m
	is "$status_of" 0
	reads far 77 'before the signal'
	nothing_mounted
	! cat <&9 >/dev/null 2>&1
	exec 9<&-
	[ ! -e f ]
}

case_sigterm_without_a_server_keeps_the_mount_and_the_second_gives_up() {
	dead_server
	kill -TERM "${pid_of[m]}"
	until_said m.err 'a second signal gives it up'
	same f model
	stop m
	is "$status_of" 6
	nothing_mounted
}

case_unmounted_from_outside_nothing_is_lost() {
	random_file far 1M
	cp far model
	serve s far
	mount_lazy m "$(at s)" f
	put f 4242 'kept'
	put model 4242 'kept'
	outside_unmount f
	finished m
	is "$status_of" 0
	same far model
	[ ! -e f ]
}

case_unmounted_from_outside_without_a_server_it_arrives_later() {
	dead_server
	outside_unmount f
	until_said m.err 'goes on trying'
	is "$(timeout 30 "$REMORA" status --json "${pid_of[m]}" | grep -c '"state": "detached"')" 1
	exits 6 timeout 60 "$REMORA" unmount "${pid_of[m]}"
	serve s far
	finished m
	is "$status_of" 0
	same far model
}

case_unmounted_from_outside_without_a_server_force_gives_it_up() {
	dead_server
	outside_unmount f
	until_said m.err 'goes on trying'
	exits 0 timeout 30 "$REMORA" unmount --force "${pid_of[m]}"
	finished m
	is "$status_of" 6
}

case_killed_and_mounted_again_what_was_synced_is_there() {
	random_file far 4M
	cp far model
	serve s far
	mount_file m "$(at s)" f
	exits 0 timeout 30 "$REMORA" pull f all
	put f 123456 'synced' fsync
	put model 123456 'synced'
	stop m KILL
	mount_file m2 "$(at s)" f
	same f model
	unmount_file m2 f
	same far model
}

case_a_dead_mount_is_cleared_away_and_told() {
	random_file far 64K
	mount_file m far f
	stop m KILL
	exits 0 timeout 30 "$REMORA" unmount f
	holds stderr 'had died'
	nothing_mounted
}

case_force_ends_an_unmount_that_waits() {
	dead_server --deadline 1h --verbose
	spawn a timeout 60 "$REMORA" unmount f
	until_said m.err 'unmount: asked for'
	exits 0 timeout 30 "$REMORA" unmount --force f
	holds stderr 'are lost'
	finished a
	is "$status_of" 0
	holds a.err 'are lost'
	finished m
	is "$status_of" 6
	nothing_mounted
}

# A reader of what is not here, with nobody to fetch it from.
waiting_reader() {
	random_file far 4M
	serve s far
	mount_file m "$(at s)" f --pull none --deadline 1h
	stop s KILL
	spawn r cat f
	until_said m.err 'far side is away'
	exits 0 timeout 30 "$REMORA" status f # once more round the loop: cat has it open
}

case_force_frees_who_waits_for_a_dead_server() {
	waiting_reader
	exits 0 timeout 30 "$REMORA" unmount --force f
	finished r
	[ "$status_of" != 0 ]
	finished m
	is "$status_of" 0
	no_process_hangs
}

case_sigterm_frees_who_waits_for_a_dead_server() {
	waiting_reader
	stop m
	is "$status_of" 0
	finished r
	[ "$status_of" != 0 ]
	nothing_mounted
	no_process_hangs
}

case_several_unmounts_at_once_are_one() {
	dead_server --deadline 1h --verbose
	spawn a timeout 60 "$REMORA" unmount f
	until_said m.err 'unmount: asked for'
	spawn b timeout 60 "$REMORA" unmount --lazy f
	until_said m.err 'unmount: asked for, lazily'
	serve s far
	finished a
	is "$status_of" 0
	finished b
	is "$status_of" 0
	finished m
	is "$status_of" 0
	same far model
}

run_cases
