#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A database on a mounted file, through 25 ms. Its journal lies beside the mount point, in the local directory: SQLite names it
# after the file. The file keeps its size, so statements update in place. REMORA_SQLITE_ROWS: how large it is.
. "$(dirname "$0")/lib.sh"

rows=${REMORA_SQLITE_ROWS:-30000} # about 1 KiB each

sql() { # FILE STATEMENTS...
	local file=$1
	shift
	timeout 120 sqlite3 -batch -bail -cmd '.timeout 20000' "$file" "$@"
}

# Served and mounted as near/db, with a copy that gets the same statements.
database() { # [MOUNT_OPTION]...
	command -v sqlite3 >/dev/null || skip "no sqlite3"
	mkdir near
	sql far "
		CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, note TEXT NOT NULL);
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $rows)
			INSERT INTO account SELECT i, 1000000, printf('%.900c', char(97 + i % 26)) || printf('%06d', i) FROM n;
		CREATE INDEX by_note ON account(substr(note, -6));"
	cp far copy
	serve s far
	link l s --delay 12500us
	mount_file m "$(at l)" near/db "$@"
}

both() { # STATEMENTS
	sql near/db "$1" >found
	sql copy "$1" >expected
	same found expected
}

# Unmounted; the original is whole, and what the copy is.
ended() {
	unmount_file m near/db
	is "$(sql far 'PRAGMA integrity_check')" ok "integrity of the original"
	sql far .dump >far.dump
	sql copy .dump >copy.dump
	same far.dump copy.dump
}

transfers() { # FROM TO
	local i
	for ((i = $1; i < $2; i++)); do
		echo "BEGIN IMMEDIATE;
			UPDATE account SET balance = balance - 10 - $i WHERE id = 1 + $i * 7919 % $rows;
			UPDATE account SET balance = balance + 10 + $i WHERE id = 1 + $i * 104729 % $rows;
			COMMIT;"
	done
}

case_a_rollback_journal_beside_the_mount_point() {
	database
	is "$(sql near/db 'PRAGMA journal_mode=DELETE')" delete
	both "SELECT balance, note FROM account WHERE substr(note, -6) = '012345'"
	both "$(transfers 0 30)"
	both "BEGIN; UPDATE account SET balance = 0 WHERE id < 2000; ROLLBACK; SELECT sum(balance) FROM account"
	both "UPDATE account SET note = upper(note) WHERE id % 100 = 5; SELECT count(*) FROM account WHERE note >= 'A' AND note < 'a'"
	is "$(sql near/db 'PRAGMA integrity_check')" ok "integrity of the mounted file"
	ended
}

case_a_write_ahead_log_beside_the_mount_point() {
	database --pull all
	is "$(sql near/db 'PRAGMA journal_mode=WAL')" wal
	is "$(sql copy 'PRAGMA journal_mode=WAL')" wal
	both "$(transfers 0 30)"
	both "UPDATE account SET balance = balance + 1 WHERE id % 3 = 0; SELECT sum(balance) FROM account"
	both "PRAGMA wal_checkpoint(TRUNCATE)"
	both "$(transfers 30 40)"
	is "$(sql near/db 'PRAGMA integrity_check')" ok "integrity of the mounted file"
	ended
}

# What is moved from one account to another changes no sum.
case_readers_beside_a_writer_see_whole_transactions() {
	local i readers=()
	database --pull all
	sql near/db 'PRAGMA journal_mode=WAL' >/dev/null
	sql copy 'PRAGMA journal_mode=WAL' >/dev/null
	for i in 1 2 3; do
		while [ ! -e written ]; do
			sql near/db 'SELECT sum(balance) FROM account' || break
		done >"sums$i" &
		readers+=($!)
	done
	transfers 0 60 >statements
	sql near/db '.read statements'
	touch written
	wait "${readers[@]}"
	for i in 1 2 3; do
		[ -s "sums$i" ]
		is "$(sort -u "sums$i")" $((rows * 1000000)) "sums that reader $i saw"
	done
	sql copy ".read statements"
	ended
}

# A program that dies with half a transaction in the file: the next one rolls it back from the journal.
case_a_transaction_of_a_killed_program_is_rolled_back() {
	database
	mkfifo in
	exec {in}<>in
	sqlite3 -batch near/db <in >out &
	local pid=$!
	echo $pid >>pids
	echo "PRAGMA cache_size = 10; BEGIN; UPDATE account SET balance = 7 WHERE id < 3000; SELECT 'spilled';" >in
	until grep -q spilled out; do kill -0 $pid; done
	[ -s near/db-journal ]
	kill -KILL $pid
	wait $pid || true
	exec {in}<&-
	both "SELECT sum(balance) FROM account"
	[ ! -e near/db-journal ]
	is "$(sql near/db 'PRAGMA integrity_check')" ok "integrity of the mounted file"
	ended
}

run_cases
