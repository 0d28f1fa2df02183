#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What a person sees who makes a mistake: the text, and the exit status, which tells usage (2), unreachable (3), data error
# (4) and incomplete (5) apart.
. "$(dirname "$0")/lib.sh"

# The spec is refused with status 2, and the mark in the second line of the quotation stands under TEXT of it.
points_at() { # SPEC TEXT
	local spec=$1 before=${1%%"$2"*} quoted mark
	exits 2 "$REMORA" info "$spec"
	quoted=$(grep -nF -- "$spec" stderr | tail -n 1 | cut -d : -f 1)
	[ -n "$quoted" ] || { echo "the spec is not quoted:"; cat stderr; return 1; }
	mark=$(sed -n "$((quoted + 1))p" stderr)
	local line=$(sed -n "${quoted}p" stderr)
	local indent=${line%%"$spec"*}
	mark=${mark%%^*}
	is $((${#mark} - ${#indent})) ${#before} "place of the mark in: $spec"
}

case_an_unknown_stage() { points_at "rety:for=60s|memory:1M" "rety"; }
case_an_unknown_option() { points_at "retry:fro=60s|memory:1M" "fro"; }
case_a_bad_time() { points_at "retry:for=soon|memory:1M" "soon"; }
case_a_bad_rate() { points_at "limit:rate=fast|memory:1M" "fast"; }
case_a_bad_size() { points_at "memory:1Q" "1Q"; }
case_a_stage_without_a_resource() { exits 2 "$REMORA" info "retry:for=60s|"; }
case_an_empty_spec() { exits 2 "$REMORA" info ""; }

case_no_command_shows_help_and_fails() {
	exits 2 "$REMORA"
	holds stderr "Usage:"
}

case_an_unknown_command() {
	exits 2 "$REMORA" fly
	holds stderr "fly"
}

case_help_of_every_command() {
	local c
	exits 0 "$REMORA" --help
	for c in serve list info copy link doctor; do
		holds stdout "$c"
	done
	for c in serve list info copy link doctor; do
		exits 0 "$REMORA" $c --help
		holds stdout "Usage: remora $c"
		exits 2 "$REMORA" $c --no-such-option
		holds stderr "no-such-option"
	done
}

case_the_version() {
	exits 0 "$REMORA" --version
	grep -qE '^remora [0-9]+\.[0-9]+\.[0-9]+$' stdout
}

case_a_file_that_is_not_there() {
	exits 3 "$REMORA" info "$dir/nothing"
	holds stderr "nothing"
}

case_a_server_that_is_not_there() {
	exits 3 "$REMORA" info "$(at nobody)"
	exits 3 "$REMORA" list "unix:$dir/nobody.sock"
}

case_a_resource_that_the_server_does_not_have() {
	serve s a=memory:1M
	exits 3 "$REMORA" info "$(at s b)"
	holds stderr "b"
}

case_a_server_with_two_resources_wants_a_name() {
	serve s a=memory:1M b=memory:2M
	exits 3 "$REMORA" info "$(at s)"
	exits 0 "$REMORA" info "$(at s b)"
}

case_too_few_and_too_many_arguments() {
	exits 2 "$REMORA" copy one
	exits 2 "$REMORA" info
	exits 2 "$REMORA" list
	exits 2 "$REMORA" serve --listen "unix:$dir/s"
	exits 2 "$REMORA" link --to unix:x
}

case_output_that_nobody_takes_is_a_failure() {
	exits 1 sh -c "\"$REMORA\" --version >/dev/full"
}

run_cases
