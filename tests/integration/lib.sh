# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What the integration tests share. A test file sources this, defines functions case_NAME, and ends with `run_cases`. Each
# case runs in a shell of its own with `set -e`, in a directory of its own ($dir, also the current one); what it starts with
# `spawn`, `serve`, `link` and `mapper` is ended behind it, by process id, and its stderr is searched for what no daemon
# should ever say. Output is TAP.
#
# Nothing waits by sleeping: a server is ready when it says so.
#
# From the environment: REMORA, the command; MAPPER, the helper of mapper.c; EXERCISE, that of tests/exercise; CASE_S, seconds
# for one case.
set -uo pipefail

: "${REMORA:?the remora command}" "${MAPPER:?the helper mapper}"
CASE_S=${CASE_S:-120}
export LC_ALL=C

# ---- processes ----

declare -A pid_of fd_of in_of

# Starts a command in the background. Its stdout can be read from ${fd_of[NAME]}, its stderr is in NAME.err.
spawn() { # NAME COMMAND...
	local name=$1 fd
	shift
	rm -f "$name.fifo"
	mkfifo "$name.fifo"
	"$@" >"$name.fifo" 2>>"$name.err" </dev/null &
	pid_of[$name]=$!
	echo $! >>pids
	exec {fd}<"$name.fifo"
	fd_of[$name]=$fd
	rm "$name.fifo"
}

# The next line of its standard output, or failure when it has ended.
line_of() { # NAME
	local line
	IFS= read -r -u "${fd_of[$1]}" line || return 1
	printf '%s\n' "$line"
}

# A signal, and the exit status that follows.
stop() { # NAME [SIGNAL]
	local rc=0
	kill "-${2:-TERM}" "${pid_of[$1]}"
	wait "${pid_of[$1]}" 2>/dev/null || rc=$?
	close_fd "$1"
	status_of=$rc
}

finished() { # NAME: waits for its end
	local rc=0
	wait "${pid_of[$1]}" || rc=$?
	close_fd "$1"
	status_of=$rc
}

close_fd() {
	local fd=${fd_of[$1]-}
	[ -z "$fd" ] || exec {fd}<&-
	unset "fd_of[$1]" "pid_of[$1]"
}

# ---- remora's own processes ----

# Starts a command that tells on descriptor 8 when it is ready, and waits for that. What it tells is in NAME.ready, its stdout in
# NAME.out, its stderr in NAME.err.
start() { # NAME COMMAND...
	local name=$1
	shift
	rm -f "$name.fifo"
	mkfifo "$name.fifo"
	"$@" --ready-fd 8 8>"$name.fifo" >>"$name.out" 2>>"$name.err" </dev/null &
	pid_of[$name]=$!
	echo $! >>pids
	cat "$name.fifo" >"$name.ready"
	rm "$name.fifo"
	[ -s "$name.ready" ] && return
	echo "$name ended before it was ready"
	cat "$name.err"
	return 1
}

# A server on $dir/NAME.sock.
serve() { # NAME ARGUMENT...
	local name=$1
	shift
	start "$name" "$REMORA" serve --listen "unix:$dir/$name.sock" "$@"
}

# A network between $dir/NAME.sock and $dir/TARGET.sock, controlled by `link_do NAME COMMAND`.
link() { # NAME TARGET OPTION...
	local name=$1 target=$2
	shift 2
	start "$name" "$REMORA" link --listen "unix:$dir/$name.sock" --to "unix:$dir/$target.sock" \
		--control "unix:$dir/$name.control" "$@"
}

link_do() { # NAME COMMAND...
	local name=$1
	shift
	"$REMORA" link --send "unix:$dir/$name.control" "$@"
}

# The spec of a resource behind NAME.sock.
at() { # NAME [RESOURCE]
	printf 'remora+unix://%s/%s.sock%s' "$dir" "$1" "${2:+/$2}"
}

# A program that maps; `ask` gives it a line and prints the answer.
mapper() { # NAME
	local name=$1 fd
	rm -f "$name.fifo" "$name.in"
	mkfifo "$name.fifo" "$name.in"
	# Opened in the same order on both sides: opening a pipe waits for the other end.
	"$MAPPER" <"$name.in" >"$name.fifo" 2>>"$name.err" &
	pid_of[$name]=$!
	echo $! >>pids
	exec {fd}>"$name.in"
	in_of[$name]=$fd
	exec {fd}<"$name.fifo"
	fd_of[$name]=$fd
	rm "$name.fifo" "$name.in"
}

tell() { # NAME LINE: without waiting for the answer
	printf '%s\n' "$2" >&"${in_of[$1]}"
}

ask() { # NAME LINE
	tell "$1" "$2"
	line_of "$1"
}

# Asks, and the answer has to be that.
asks() { # NAME LINE ANSWER
	local answer
	answer=$(ask "$1" "$2") || { echo "$1 died of: $2"; return 1; }
	is "$answer" "$3" "$1: $2"
}

# ---- mounts ----

# SPEC as the file FILE. Whoever is left at the end of the case is ended by force: say unmount_file.
mount_file() { # NAME SPEC FILE [OPTION]...
	local name=$1 spec=$2 file=$3
	shift 3
	start "$name" "$REMORA" mount --foreground "$@" "$spec" "$file" || return 1
	echo "${pid_of[$name]}" >>mounts
}

# Everything is safe on the far side, and nothing is left here.
unmount_file() { # NAME FILE
	exits 0 timeout 60 "$REMORA" unmount "$2"
	finished "$1"
	is "$status_of" 0 "exit status of the mount $1"
	nothing_mounted
}

nothing_mounted() {
	! grep -F " $dir/" /proc/self/mounts
}

no_control_socket() {
	! find "$REMORA_RUNTIME_DIR" -name "mount-*.sock" 2>/dev/null | grep .
}

# No process below this one waits in the kernel where no signal reaches it.
no_process_hangs() {
	local pid state
	for pid in $(descendants $BASHPID); do
		state=$(sed 's/^.*) \(.\).*/\1/' "/proc/$pid/stat" 2>/dev/null) || continue
		[ "$state" != D ] || { echo "$pid is in state D: $(tr '\0' ' ' <"/proc/$pid/cmdline")"; return 1; }
	done
}

# A mount whose process is dead answers everybody at once; its name goes with this.
mounts_clear() {
	local pid file
	if [ -f mounts ]; then
		while read -r pid; do kill -KILL "$pid" 2>/dev/null; done <mounts
	fi
	while read -r _ file _; do
		[[ $file != "$dir"/* ]] || umount -l "$file" 2>/dev/null || fusermount3 -uz "$file"
	done </proc/self/mounts
}

# ---- statements ----

is() { # FOUND WANTED [WHAT]
	[ "$1" = "$2" ] && return
	echo "${3:-}: got '$1', not '$2'"
	return 1
}

less() { # A B [WHAT]
	[ "$1" -lt "$2" ] && return
	echo "${3:-}: $1 is not less than $2"
	return 1
}

same() { # FILE FILE
	cmp "$1" "$2"
}

# The command ends with this status; its output is in the files stdout and stderr.
exits() { # STATUS COMMAND...
	local want=$1 rc=0
	shift
	"$@" >stdout 2>stderr </dev/null || rc=$?
	[ "$rc" = "$want" ] && return
	echo "exit status $rc, not $want: $*"
	cat stdout stderr
	return 1
}

holds() { # FILE TEXT
	grep -qF -- "$2" "$1" && return
	echo "$1 does not hold '$2':"
	cat "$1"
	return 1
}

lacks() { # FILE TEXT
	! grep -qF -- "$2" "$1" && return
	echo "$1 holds '$2':"
	cat "$1"
	return 1
}

random_file() { # NAME BYTES
	head -c "$(numfmt --from=iec "$2")" /dev/urandom >"$1"
}

# ---- the runner ----

# Every process below a process, deepest last.
descendants() { # PID
	local child
	for child in $(cat "/proc/$1/task/"*/children 2>/dev/null || true); do
		echo "$child"
		descendants "$child"
	done
}

case_end() {
	local pid left=0
	trap - EXIT
	mounts_clear
	if [ -f pids ]; then
		while read -r pid; do
			kill -TERM "$pid" 2>/dev/null
		done <pids
		while read -r pid; do
			wait "$pid" 2>/dev/null
		done <pids
	fi
	grep -nE 'internal error|AddressSanitizer|ThreadSanitizer|LeakSanitizer|runtime error:|UndefinedBehavior|Assertion' \
		./*.err 2>/dev/null && left=1
	return $left
}

# Where in the test file, not in here. The innermost statement speaks, and only once.
failed_at() {
	local i
	trap - ERR
	for ((i = 1; i < ${#FUNCNAME[@]}; i++)); do
		[ "${BASH_SOURCE[i]}" = "${BASH_SOURCE[0]}" ] && continue
		echo "failed at ${BASH_SOURCE[i]##*/}:${BASH_LINENO[i - 1]}"
		return
	done
}

case_run() { # NAME NUMBER
	set -eE
	dir=$root/$2 # short: a unix socket's path has 107 bytes at most
	mkdir "$dir"
	cd "$dir"
	export REMORA_RUNTIME_DIR=$dir/run # control sockets: a case sees its own
	trap failed_at ERR
	trap 'rc=$?; case_end || rc=1; exit $rc' EXIT
	trap 'exit 143' TERM
	"case_$1"
}

skip() { # REASON
	echo "$1" >"$root/skip"
	exit 0
}

run_cases() {
	local names name n=0 runner timer rc bad=0 p
	root=$(mktemp -d "${TMPDIR:-/tmp}/remora-test.XXXXXX")
	trap 'for p in $(descendants $BASHPID); do kill -KILL "$p" 2>/dev/null; done; rm -rf "$root"; exit 143' TERM INT HUP
	names=$(declare -F | sed -n 's/^declare -f case_//p' | grep -vxE 'run|end')
	[ -z "${ONLY-}" ] || names=$ONLY
	echo "1..$(wc -w <<<"$names")"
	for name in $names; do
		n=$((n + 1))
		: >"$root/log"
		case_run "$name" "$n" >>"$root/log" 2>&1 </dev/null &
		runner=$!
		sleep "$CASE_S" &
		timer=$!
		wait -n "$runner" "$timer"
		if kill -0 "$timer" 2>/dev/null; then
			kill "$timer"
			wait "$timer" 2>/dev/null
			wait "$runner"
			rc=$?
		else
			echo "no end after $CASE_S s" >>"$root/log"
			# What it waits for ends first: a shell acts on a signal only between two commands.
			for p in $(descendants "$runner"); do kill -KILL "$p" 2>/dev/null; done
			kill -TERM "$runner" 2>/dev/null
			wait "$runner" 2>/dev/null
			rc=1
		fi
		if [ $rc = 0 ] && [ -f "$root/skip" ]; then
			echo "ok $n - $name # SKIP $(cat "$root/skip")"
			rm "$root/skip"
		elif [ $rc = 0 ]; then
			echo "ok $n - $name"
		else
			bad=1
			echo "not ok $n - $name"
			{ tail -n 30 "$root/log"; tail -n 5 "$root/$n"/*.err 2>/dev/null; } | sed 's/^/# /'
		fi
		rm -rf "${root:?}/$n"
	done
	rm -rf "$root"
	return $bad
}
