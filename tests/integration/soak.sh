#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Use for a long time, while the world fails at random: writers, flushes and readers of a region with a small budget, over a
# link that is cut and stalled, to a server that is killed and started again. REMORA_SOAK_S seconds (default 5);
# REMORA_SEED repeats the row of events, though not their exact times.
. "$(dirname "$0")/lib.sh"

case_random_use_while_the_world_fails() {
	local seed=${REMORA_SEED:-$RANDOM} end=$((SECONDS + ${REMORA_SOAK_S:-5})) n=0 stalled=0
	echo "REMORA_SEED=$seed"
	RANDOM=$seed
	random_file data 32M
	cp data model
	serve s data
	link l s --delay 1ms --rate 800Mbit
	mapper m
	ask m "open $(at l) budget=8M push=20" >/dev/null
	while [ $SECONDS -lt $end ]; do
		n=$((n + 1))
		case $((RANDOM % 8)) in
		0 | 1) asks m "scatter $((RANDOM % 4000 + 1)) $((RANDOM % 4 + 1)) $RANDOM $dir/model" "ok" ;;
		2) asks m "fill $((RANDOM * 500)) $((RANDOM * 20)) $RANDOM $dir/model" "ok" ;;
		3) asks m "same $((RANDOM * 500)) $((RANDOM * 400)) $dir/model" "ok same" ;;
		4) link_do l cut ;;
		5)
			stalled=$((1 - stalled))
			link_do l stall "$([ $stalled = 1 ] && echo on || echo off)"
			[ $stalled = 0 ] || {
				tell m "flush"
				link_do l stall off
				stalled=0
				is "$(line_of m)" "ok" "flush $n"
				same data model
			}
			;;
		6)
			tell m "same 0 32M $dir/model"
			stop s KILL
			serve s data
			is "$(line_of m)" "ok same" "reading $n"
			;;
		7)
			asks m "flush" "ok"
			same data model
			;;
		esac
	done
	echo "$n events"
	asks m "close" "ok"
	same data model
}

run_cases
