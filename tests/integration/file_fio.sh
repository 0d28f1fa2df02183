#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fio writes blocks with checksums to a mounted file while it is being pulled through 25 ms, and finds all of them: there, and,
# behind a flush, in the far file.
. "$(dirname "$0")/lib.sh"

# The same blocks in the same order, whenever it is called with the same options.
written() { # FILE [OPTION]...
	local file=$1
	shift
	timeout 300 fio --name=blocks --filename="$file" --size=$size --rw=randwrite --bsrange=512-128k --verify=crc32c \
		--verify_fatal=1 --randseed=4711 --verify_state_save=0 --output-format=terse --output=fio.out "$@" ||
		{ cat fio.out; return 1; }
}

verified_behind_25_ms() { # [OPTION]...
	size=24M
	command -v fio >/dev/null || skip "no fio"
	random_file far $size
	serve s far
	link l s --delay 12500us
	mount_file m "$(at l)" f --pull all
	written f --do_verify=0 "$@"
	written f --verify_only=1 "$@"
	exits 0 timeout 60 "$REMORA" flush "$dir/f"
	written far --verify_only=1 "$@"
	same f far
	unmount_file m f
	written far --verify_only=1 "$@"
}

case_blocks_written_during_the_pull_are_in_the_far_file() {
	verified_behind_25_ms --ioengine=psync
}

case_blocks_written_through_a_map_are_in_the_far_file() {
	verified_behind_25_ms --ioengine=mmap
}

case_blocks_written_around_the_page_cache_are_in_the_far_file() {
	verified_behind_25_ms --ioengine=libaio --iodepth=16 --direct=1
}

run_cases
