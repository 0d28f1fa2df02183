#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Streaming by knowledge: what one run was seen to use is there before the next run asks, whatever the profile's age.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ -w /dev/fuse ] || { echo '1..0 # SKIP no right to /dev/fuse'; exit 0; }

# A program's start: small reads all over the file, in an order of its own.
program() { # FILE
	local page
	for page in 900 17 18 19 512 4 1023 300 301 77; do
		timeout 30 dd if="$1" bs=4096 count=1 skip=$((page * 16)) status=none || return 1
	done | sha256sum
}

number_of() { # FILE NAME
	timeout 30 "$REMORA" status --json "$1" | sed -n "s/^ *\"$2\": \([0-9]*\),\?$/\1/p" | head -n 1
}

# Until the whole profile has been pulled: the mount notes it.
profile_pulled() { # FILE
	grep -qm1 "the profile's .* ranges have been pulled" < <(timeout 60 "$REMORA" log --follow "$1" 2>&1)
}

# Records the program's run on FILE into PROFILE.
record() { # FILE PROFILE [COMMAND...]
	local file=$1 profile=$2
	shift 2
	start r "$REMORA" record "$file" "$profile"
	"$@"
	stop r
	is "$status_of" 0 record
}

case_the_second_run_waits_for_nothing() {
	local first second misses
	random_file far 64M
	serve s far
	link net s --delay 12ms
	mount_file m "$(at net far)" f --pull none
	first=$(program f)
	record f profile program f >/dev/null
	misses=$(number_of f misses)
	unmount_file m f
	less 7 "$misses" 'requests that waited in the first run'
	is "$(sed -n 1,2p profile)" $'remora-profile 1\n# size=67108864'
	is "$(sed -n 3p profile | cut -d' ' -f1)" $((900 * 65536)) 'the first use'
	is "$(sed -n 4p profile | cut -d' ' -f1)" $((17 * 65536)) 'the second'

	mount_file m2 "$(at net far)" f --pull none --profile profile
	profile_pulled f
	misses=$(number_of f misses)
	less "$(number_of f pulled_bytes)" 3000000 'bytes that the profile has pulled'
	second=$(program f)
	is "$second" "$first"
	is "$(number_of f misses)" "$misses" 'requests that waited in the second run'
	unmount_file m2 f
}

case_a_profile_works_beside_the_pull_of_everything() {
	random_file far 8M
	serve s far
	printf 'remora-profile 1\n4194304 65536\n0 4096\n' >profile
	mount_file m "$(at s far)" f --profile profile --chunk 4K
	profile_pulled f
	same f far
	unmount_file m f
}

case_a_stale_or_silly_profile_does_no_harm() {
	random_file far 1M
	serve s far
	{
		printf 'remora-profile 1\n# size=99999999999\n# made by hand\n\n'
		printf '%s\n' '0 4096' '0 1048576' '1000000 99999999' '18446744073709551615 18446744073709551615' \
			'5000000000 4096' '4096 0' '4096 4096' '1 1'
	} >profile
	mount_file m "$(at s far)" f --pull none --profile profile
	profile_pulled f
	is "$(number_of f local_bytes)" 1048576
	same f far
	unmount_file m f
	# of which nothing is left
	printf 'remora-profile 1\n5000000000 4096\n' >profile
	mount_file m2 "$(at s far)" f --pull none --profile profile
	same f far
	unmount_file m2 f
}

case_what_is_no_profile_is_refused() {
	random_file far 1M
	serve s far
	printf 'remora-profile 1\n0 4096\nhello\n' >profile
	exits 2 timeout 60 "$REMORA" mount --profile profile "$(at s far)" f ||
		exits 1 timeout 60 "$REMORA" mount --profile profile "$(at s far)" f
	holds stderr 'line 3'
	printf 'remora-profile 7\n' >profile
	! timeout 60 "$REMORA" mount --profile profile "$(at s far)" f 2>stderr
	holds stderr 'version 7'
	! timeout 60 "$REMORA" mount --profile none "$(at s far)" f 2>stderr
	holds stderr none
	nothing_mounted
}

case_one_records_at_a_time_and_a_recording_ends_with_the_mount() {
	random_file far 4M
	serve s far
	mount_file m "$(at s far)" f
	start r "$REMORA" record f profile
	! timeout 60 "$REMORA" record f other 2>stderr
	holds stderr 'one at a time'
	[ ! -e other ]
	timeout 30 dd if=f bs=4096 count=1 skip=700 status=none >/dev/null
	unmount_file m f
	finished r
	is "$status_of" 0
	holds profile "$((700 * 4096)) "
	is "$(ls -d profile*)" profile
}

run_cases
