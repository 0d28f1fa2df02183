#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The far side fails at each moment of a file's life: mount, read, write, fsync, read again, unmount. Of a row of lives, the Nth
# gets N answers and then none: there the server is killed, or the link is cut. It ends with a life that needed no more.
. "$(dirname "$0")/lib.sh"

size=524288
lives_max=60
deadline=300ms

# ---- one life ----

# The exit status of each step comes into steps, what it says into life.out.
step() { # NAME COMMAND...
	local name=$1 rc=0
	shift
	echo "$name" >now
	"$@" >>life.out 2>&1 </dev/null || rc=$?
	echo "$name $rc" >>steps
	return $rc
}

piece() { # FILE OFF LEN
	timeout 30 dd if=new of="$1" bs="$3" count=1 seek="$2" oflag=seek_bytes conv=notrunc status=none
}

life() { # [MOUNT_OPTION]...
	step mount mount_file m "$(at l)" f --pull none --push-interval 1h "$@" || return 0
	step read timeout 30 cmp -n 200000 f from || true
	step write piece f 70001 100001 || true
	step sync timeout 30 sync f || true
	step write-again piece f 400001 50001 || true
	step read-again timeout 30 cmp f model || true
	step unmount timeout 30 "$REMORA" unmount "$dir/f" || return 0
	step end wait "${pid_of[m]}" || true
}

rc_of() { # STEP
	sed -n "s/^$1 //p" steps
}

prepare() {
	random_file from $size
	random_file new 200K
	cp from model
	piece model 70001 100001
	piece model 400001 50001
}

running() { # PID
	kill -0 "$1" 2>/dev/null
}

# Until the process is over, or waits: nothing goes through the link for a while. Sets `waits`.
watch() { # PID
	local before='' after=none equal=0
	while running "$1" && [ $equal -lt 5 ]; do
		before=$after
		after=$(link_do l stat)
		[ "$before" = "$after" ] && equal=$((equal + 1)) || equal=0
	done
	waits=no
	! running "$1" || waits=yes
}

life_begins() { # ANSWERS FAULT [MOUNT_OPTION]...
	local fault=$2,after=$1 # how many answers come as always
	shift 2
	rm -f steps now life.* m.err mounts
	cp from far
	serve s "far=$fault|file:far"
	link l s
	spawn life life "$@"
	watch "${pid_of[life]}"
	[ $waits = no ] || echo "life $n waits in: $(cat now)"
}

life_ends() {
	finished life
	no_process_hangs
	! grep -E ' (124|137)$' steps || { echo "no end within 30 s in life $n"; return 1; }
}

# Unmounted, and nothing is left: no mount, mount point, socket, process.
all_gone() {
	local pid
	nothing_mounted
	no_control_socket
	[ ! -e f ] || { echo "the mount point is left"; return 1; }
	no_process_hangs
	[ ! -f mounts ] || while read -r pid; do
		timeout 10 tail -f --pid="$pid" /dev/null
	done <mounts
}

story() { # in case of a failure
	cat steps life.out m.err
	return 1
}

# ---- it comes back ----

each_life_is_fine() { # FAULT REMEDY
	local n
	prepare
	for ((n = 0; n < lives_max; n++)); do
		life_begins $n "$1"
		[ $waits = no ] || "$2"
		life_ends || story
		! grep -v ' 0$' steps || { echo "failed in life $n"; story; }
		same far model
		all_gone
		stop l
		stop s KILL # its own flush at the end may be what gets no answer
		[ $waits = yes ] || return 0
	done
	echo "still not through after $n answers"
	return 1
}

server_again() {
	stop s KILL
	serve s far
}

link_cut() {
	link_do l cut
}

case_a_server_killed_and_started_again_at_each_moment_is_not_seen() {
	each_life_is_fine fault:hang=1000000 server_again
}

# The server lets a connection in again when the requests of the former one have ended: here they do, though late.
case_a_link_cut_at_each_moment_is_not_seen() {
	each_life_is_fine fault:delay=400ms link_cut
}

# ---- it does not ----

# What was told to be written is there; around it, all is as it was.
content_check() {
	local step off len
	while read -r step off len; do
		[ "$(rc_of "$step")" = 0 ] || continue
		cmp -i "$off" -n "$len" far model || { echo "$step of life $n is not there"; return 1; }
	done <<-END
		write 70001 100001
		write-again 400001 50001
	END
	cmp -n 70001 far from
	cmp -i 170002 -n 229999 far from
	cmp -i 450002 far from
}

# What the far side has not got stays with the mount until the server is back.
server_back() {
	local tries
	if [ "$(rc_of mount)" != 0 ]; then
		serve s far
	elif [ "$(rc_of unmount)" = 0 ]; then
		serve s far
	else
		is "$(rc_of unmount)" 6 "exit status of unmount in life $n"
		grep -qF " $dir/f " /proc/self/mounts || { echo "the mount did not stay"; return 1; }
		serve s far
		# It is asked within so short a deadline that the mount may not have looked for the server again yet.
		for ((tries = 0; tries < 40; tries++)); do
			"$REMORA" unmount "$dir/f" >>life.out 2>&1 && return 0
		done
		echo "the data is not taken by the server that is back, in life $n"
		return 1
	fi
}

each_life_loses_nothing() { # REMEDY
	local n
	prepare
	for ((n = 0; n < lives_max; n++)); do
		life_begins $n fault:hang=1000000 --deadline $deadline
		[ $waits = no ] || "$1"
		life_ends || story
		[ -z "${pid_of[s]-}" ] || stop s KILL
		server_back || story
		all_gone
		content_check || story
		stop l
		stop s KILL # its own flush at the end may be what gets no answer
		[ $waits = yes ] || return 0
	done
	echo "still not through after $n answers"
	return 1
}

server_lost() {
	stop s KILL
}

case_a_server_lost_at_each_moment_gives_errors_in_time_and_loses_nothing() {
	each_life_loses_nothing server_lost
}

# The connection is fine, and nothing comes: that is seen in time, too.
case_a_server_silent_from_each_moment_on_gives_errors_in_time_and_loses_nothing() {
	each_life_loses_nothing true
}

# ---- single moments ----

case_a_mount_without_a_server_fails_and_leaves_nothing() {
	exits 3 timeout 30 "$REMORA" mount --deadline $deadline "$(at s)" f
	all_gone
	serve s memory:1M
	stop s KILL
	exits 3 timeout 30 "$REMORA" mount --deadline $deadline "$(at s)" f
	all_gone
}

# Who has the file open gets an error; the next mount takes the dead mount point over.
case_a_killed_mount_leaves_nobody_waiting() {
	local n=0 pid rc=0
	prepare
	cp from far
	serve s "far=fault:hang=1000000,after=0|file:far"
	link l s
	mount_file m "$(at l)" f --pull none
	timeout 30 cat f >life.out 2>&1 &
	pid=$!
	echo $pid >>pids
	watch $pid
	is $waits yes "cat waits"
	stop m KILL
	wait $pid || rc=$?
	is $rc 1 "exit status of cat"
	no_process_hangs
	server_again
	mount_file m "$(at l)" f
	timeout 30 cmp f from
	unmount_file m f
	# Who made the mount point was killed: it is a file as any other to those after him.
	[ ! -s f ] && rm f
	all_gone
}

# A program that waits for the far side can be killed.
case_a_waiting_reader_can_be_killed() {
	local n=0 pid
	prepare
	cp from far
	serve s "far=fault:hang=1000000,after=0|file:far"
	link l s
	mount_file m "$(at l)" f --pull none
	cat f >life.out 2>&1 &
	pid=$!
	echo $pid >>pids
	watch $pid
	is $waits yes "cat waits"
	kill -KILL $pid
	timeout 20 tail -f --pid=$pid /dev/null
	wait $pid || true
	server_again
	timeout 30 cmp f from
	unmount_file m f
	all_gone
}

run_cases
