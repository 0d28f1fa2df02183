#!/usr/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What runs, asked through control sockets: status, log, and pull, flush, invalidate, record.
# shellcheck source=tests/integration/lib.sh
. "$(dirname "$0")/lib.sh"

# The value of a member of status --json of a target.
told() { # TARGET MEMBER
	"$REMORA" status --json "$1" | python3 -c 'import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1].split("."):
    value = value[int(name) if isinstance(value, list) else name]
print(json.dumps(value) if isinstance(value, (list, dict, bool)) else value)' "$2"
}

case_a_server_tells_about_itself() {
	random_file a 1M
	serve s a=a "b=limit:rate=100M|memory:2M"
	"$REMORA" copy -q "$(at s a)" a.copy
	is "$(told "unix:$dir/s.sock" kind)" serve
	is "$(told "unix:$dir/s.sock" resources.0.name)" a
	is "$(told "unix:$dir/s.sock" resources.0.size)" 1048576
	is "$(told "$dir/s.sock" bytes_read)" 1048576
	is "$(told "${pid_of[s]}" failed)" 0
	is "$(told s.sock resources.1.stages.0.name)" limit
	exits 0 "$REMORA" status s.sock
	holds stdout "unix:$dir/s.sock  serving"
	holds stdout "limit:rate=100M|memory:2M"
	exits 0 "$REMORA" status --json
	python3 -c 'import json; a = json.load(open("stdout")); assert len(a) == 1 and a[0]["kind"] == "serve", a'
	stop s
	is "$status_of" 0
	is "$(ls run)" "" "the socket is removed"
}

case_a_server_serves_without_a_control_socket() {
	echo "no directory" >run
	random_file a 64K
	serve s a=a
	holds s.err "remora status does not see this server"
	"$REMORA" copy -q "$(at s a)" a.copy
	same a a.copy
}

case_nothing_runs() {
	exits 0 "$REMORA" status
	holds stdout "Nothing runs"
	exits 0 "$REMORA" status --json
	is "$(cat stdout)" "[]"
	exits 3 "$REMORA" status f
	holds stderr "no mount or server is called f: none runs here"
}

case_an_unknown_target_is_told_what_there_is() {
	serve s memory:1M
	for verb in status log pull flush invalidate; do
		exits 3 "$REMORA" $verb nowhere
		holds stderr "no mount or server is called nowhere; there is: unix:$dir/s.sock"
	done
	exits 3 "$REMORA" record nowhere profile
	is "$(echo profile*)" "profile*" "no profile"
	for verb in pull flush invalidate; do
		exits 2 "$REMORA" $verb s.sock
		holds stderr "is a server: only a mount can be"
	done
}

case_ranges_and_options_are_checked_first() {
	exits 2 "$REMORA" pull f 2M-1M
	holds stderr "ends before it begins"
	exits 2 "$REMORA" pull f 1X
	holds stderr "1G-2G, 1G+64M or 64M"
	exits 2 "$REMORA" invalidate f 0
	holds stderr "empty"
	exits 2 "$REMORA" status --interval 1s
	exits 2 "$REMORA" record f
	exits 2 "$REMORA" status a b
}

case_a_dead_socket_is_removed_and_a_stuck_process_is_named() {
	serve s memory:1M
	serve stuck memory:1M
	python3 -c 'import socket
s = socket.socket(socket.AF_UNIX)
s.bind("run/mount-2147483646.sock")'
	kill -STOP "${pid_of[stuck]}"
	exits 0 "$REMORA" status
	kill -CONT "${pid_of[stuck]}"
	holds stderr "process ${pid_of[stuck]}"
	holds stderr "does not answer"
	holds stdout "unix:$dir/s.sock"
	lacks stdout "stuck.sock"
	[ ! -e run/mount-2147483646.sock ]
	exits 0 "$REMORA" status
	holds stdout "stuck.sock"
	holds stdout "STATE"
}

case_watching_appends_blocks_into_a_pipe_and_ends_with_the_process() {
	serve s memory:1M
	spawn watch "$REMORA" status --watch --interval 50ms --json s.sock
	for _ in 1 2 3; do line_of watch | grep -q '"kind":"serve"'; done
	stop s
	while line_of watch >/dev/null; do :; done
	finished watch
	is "$status_of" 0
	serve t memory:1M
	spawn text "$REMORA" status --watch --interval 50ms t.sock
	for _ in 1 2; do
		until line_of text | grep -q "unix:$dir/t.sock  serving"; do :; done
	done
	stop text INT
	is "$status_of" 0
}

case_the_log_of_a_server() {
	serve s memory:1M
	exits 0 "$REMORA" log --json s.sock
	python3 -c 'import json
e = json.load(open("stdout"))["events"]
assert e[0]["level"] == "info" and "listening on" in e[0]["text"] and e[0]["time_ns"] > 1e18, e'
	exits 0 "$REMORA" log s.sock
	grep -qE '^[0-9-]{10} [0-9:]{8}\.[0-9]{3}  info     listening on unix:' stdout
	spawn follow "$REMORA" log --follow --json s.sock
	line_of follow | grep -q "listening on"
	line_of follow | grep -q "sandbox"
	# It ends when the server does, and has told why.
	stop s
	line_of follow | grep -q "signal 15"
	finished follow
	is "$status_of" 0
}

case_the_map_of_a_half_pulled_file() {
	[ -w /dev/fuse ] || skip "no right to /dev/fuse"
	random_file a 8M
	serve s a=a
	mount_file m "$(at s a)" f --pull none
	is "$(told f local_bytes)" 0
	exits 0 "$REMORA" pull --json f 4M
	is "$(told f local_bytes)" 4194304
	is "$(told f pulled_bytes)" 4194304
	is "$(told f unsafe_bytes)" 0
	is "$(told "$dir/f" size)" 8388608
	exits 0 "$REMORA" status --map f
	# 128 chunks in rows of 69 columns at 80: the first half is local.
	grep -qxE ' +0 B  #{64}\.{5}' stdout
	grep -qE '  \. remote  # local  < pulling' stdout
	lacks stdout $'\e'
	"$REMORA" status --map --json f >status.json
	python3 -c 'import json
s = json.load(open("status.json"))
m = s["map"]
assert len(m["cells"]) == len(m["fill"]) == m["chunks"] == s["size"] // s["chunk"] == 128, m
assert m["cells"] == "#" * 64 + "." * 64 and m["fill"] == "9" * 64 + "0" * 64, m
assert s["local_bytes"] <= s["size"] and s["dirty_bytes"] == 0 and s["far"] == "up", s
for name in "read", "write", "sync":
    assert s[name]["count"] >= 0 and s[name]["p50_ns"] <= s[name]["p99_ns"] <= s[name]["max_ns"], s'
	exits 0 "$REMORA" pull f all
	is "$(told f local_bytes)" 8388608
	same a f
	exits 0 "$REMORA" status
	holds stdout "100 %"
	exits 2 "$REMORA" status --map
	holds stderr "--map needs a target"
	unmount_file m f
}

case_invalidated_is_fetched_anew() {
	[ -w /dev/fuse ] || skip "no right to /dev/fuse"
	random_file a 2M
	serve s a=a
	mount_file m "$(at s a)" f
	exits 0 "$REMORA" pull f
	same a f
	random_file a2 2M
	dd if=a2 of=a conv=notrunc status=none
	exits 0 "$REMORA" invalidate f 1M
	head -c 1M a >want
	tail -c 1M f >>want.tail
	head -c 1M f >got
	same want got
	exits 0 "$REMORA" invalidate f
	same a f
	unmount_file m f
}

case_flush_is_safe_or_says_how_much_is_not() {
	[ -w /dev/fuse ] || skip "no right to /dev/fuse"
	random_file a 1M
	serve s a=a
	link l s
	mount_file m "$(at l a)" f --pull all --push-interval 1h --deadline 1s
	exits 0 "$REMORA" pull f
	random_file new 64K
	dd if=new of=f bs=64K seek=2 conv=notrunc status=none
	exits 0 "$REMORA" flush f
	is "$(told f unsafe_bytes)" 0
	cmp -n 65536 -i 131072:0 a new
	dd if=new of=f bs=64K seek=4 conv=notrunc status=none
	less 0 "$(told f unsafe_bytes)"
	stop s KILL
	stop l KILL
	exits 6 "$REMORA" flush f
	holds stderr "64 KiB is not safe yet"
	exits 6 "$REMORA" flush --json f
	python3 -c 'import json
a = json.load(open("stdout"))
assert not a["ok"] and a["unsafe_bytes"] >= 65536 and a["code"] and a["error"], a'
	is "$(told f unsafe_bytes)" 65536
	exits 0 "$REMORA" status f
	holds stdout "Unsafe    64 KiB"
	serve s a=a
	link l s
	exits 0 "$REMORA" flush f
	cmp -n 65536 -i 262144:0 a new
	unmount_file m f
}

case_a_recording_is_a_profile_of_what_was_read_first() {
	[ -w /dev/fuse ] || skip "no right to /dev/fuse"
	random_file a 8M
	serve s a=a
	mount_file m "$(at s a)" f --pull none
	start rec "$REMORA" record f profile
	[ ! -e profile ] # before the end
	for off in 6 1 3; do
		dd if=f of=/dev/null bs=4K count=1 iflag=direct,skip_bytes skip=$((off << 20)) status=none
	done
	stop rec INT
	is "$status_of" 0
	is "$(head -n 1 profile)" "remora-profile 1"
	grep -q '^# size=8388608$' profile
	is "$(sed -n '3,$p' profile | cut -d ' ' -f 1 | tr '\n' ' ')" "6291456 1048576 3145728 "
	is "$(echo profile*)" profile "no temporary file"
	# The mount hears within a second that the first one has ended.
	until "$REMORA" record --json --for 1ms f again; do :; done
	is "$(head -n 1 again)" "remora-profile 1"
	unmount_file m f
}

run_cases
