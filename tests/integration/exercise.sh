#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The exerciser on a mounted file, and on memory, while everything is still on its way: what it read is what its model says, and
# what it wrote is in the far file. REMORA_EXERCISE_S seconds for all cases together (default 9); REMORA_SEED repeats a run's
# operations, though not their exact times.
. "$(dirname "$0")/lib.sh"

: "${EXERCISE:?the exerciser}"
seed=${REMORA_SEED:-$((RANDOM * 32768 + RANDOM))}

# Each case has its part of the time.
seconds() {
	local s=$((${REMORA_EXERCISE_S:-9} / 9))
	echo $((s > 0 ? s : 1))
}

# A file of this size behind 5 ms. It ends within a page, so that there is a tail.
served() { # BYTES [SERVE_OPTION]...
	size=$(($(numfmt --from=iec "$1") + 1234))
	shift
	random_file far $size
	# What is zero travels by other ways.
	dd if=/dev/zero of=far bs=1K seek=1024 count=300 conv=notrunc status=none
	cp far from
	serve s far "$@"
	link l s --delay 5ms
}

# The number of the case gives each another one.
exercised() { # [OPTION]...
	echo "REMORA_SEED=$seed"
	timeout $(($(seconds) + 120)) "$EXERCISE" --size $size --seed $((seed + ${dir##*/})) --seconds "$(seconds)" \
		--processes "${workers:-3}" --from from "$@"
}

file_exercised() { # [MOUNT_OPTION]...
	mount_file m "$(at l)" f "$@"
	exercised --file f --direct --model model
	unmount_file m f
	same far model
}

case_a_file_is_exercised_while_it_is_pulled() {
	served 16M
	file_exercised --pull all
}

case_a_file_is_exercised_while_it_is_evicted() {
	served 24M
	file_exercised --budget 8M --pull none
}

case_a_file_is_exercised_while_it_is_evicted_from_a_disk() {
	served 24M
	file_exercised --budget 8M --near "$dir"
}

case_a_file_without_a_region_is_exercised() {
	served 2M
	file_exercised --direct
}

# Alone, a worker writes over the end of the file, too.
case_a_file_is_exercised_on_epoll() {
	local workers=1
	served 16M --loop epoll
	file_exercised --loop epoll
}

# Nothing of that is seen; what a killed server had taken and not flushed is pushed again.
exercised_under_fire() { # COMMAND...
	served 8M
	mount_file m "$(at l)" f --push-interval 50ms
	exercised --file f --direct --model model &
	local pid=$!
	while kill -0 $pid 2>/dev/null; do
		"$@"
		read -rt 0.3 <> <(:) || true
	done
	wait $pid
	unmount_file m f
	same far model
}

case_a_file_is_exercised_while_the_link_is_cut() {
	exercised_under_fire link_do l cut for 20ms
}

server_again() {
	stop s KILL
	serve s far
}

case_a_file_is_exercised_while_the_server_is_killed() {
	exercised_under_fire server_again
}

case_memory_is_exercised_while_it_is_pulled() {
	served 16M
	exercised --memory "$(at l)" --far far --model model
	same far model
}

case_memory_is_exercised_while_it_is_evicted() {
	served 24M
	exercised --memory "$(at l)" --far far --model model --budget 8M
	same far model
}

run_cases
