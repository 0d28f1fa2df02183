#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Links that others can reach: who gets in, who does not and is told why, and that data is what it was.
. "$(dirname "$0")/lib.sh"

# ---- certificates, made by openssl itself ----

make_ca() { # NAME
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.crt" \
		-subj "/CN=the CA $1" -days 30 2>/dev/null
}

make_cert() { # NAME CA SAN [OPENSSL-OPTION]...
	local name=$1 ca=$2 san=$3
	shift 3
	[ $# -gt 0 ] || set -- -days 30
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -out "$name.csr" \
		-subj "/CN=$name" 2>/dev/null
	printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$san" >"$name.ext"
	openssl x509 -req -in "$name.csr" -CA "$ca.crt" -CAkey "$ca.key" -CAcreateserial -extfile "$name.ext" \
		-out "$name.crt" "$@" 2>/dev/null
	chmod 600 "$name.key"
}

# A CA, a server's certificate for 127.0.0.1, and a client's.
pki() {
	make_ca ca
	make_cert alpha ca DNS:alpha.example,IP:127.0.0.1
	make_cert beta ca DNS:beta.example
}

# A server with TLS on a port of its choice: $addr. The file of its certificate can be another one's.
serve_tls() { # NAME ARGUMENT...
	local name=$1
	shift
	start "$name" "$REMORA" serve --listen 127.0.0.1:0 --tls-cert "${cert:-alpha}.crt" \
		--tls-key "${cert:-alpha}.key" --tls-ca ca.crt "$@" || return 1
	addr=$(head -n 1 "$name.ready")
}

# The spec of a resource at $addr for a client with the certificate of that name.
spec() { # RESOURCE [CLIENT [MORE]]
	printf 'remoras://%s/%s?ca=ca.crt%s%s' "$addr" "$1" "${2:+&cert=$2.crt&key=$2.key}" "${3:+&$3}"
}

refused() { # SPEC TEXT-OF-THE-CLIENT [TEXT-OF-THE-SERVER]
	exits 3 timeout 20 "$REMORA" info "$1"
	holds stderr "$2"
	[ -z "${3-}" ] || holds s.err "$3"
}

# ---- data ----

case_data_over_tls_is_what_it_was() {
	pki
	random_file data 24M
	truncate -s 48M data
	serve_tls s data scratch=memory:48M
	exits 0 "$REMORA" list "remoras://$addr?ca=ca.crt&cert=beta.crt&key=beta.key"
	holds stdout scratch
	exits 0 "$REMORA" copy --quiet "$(spec data beta)" out
	same data out
	exits 0 "$REMORA" copy --quiet --verify data "$(spec scratch beta connections=4)"
	exits 0 "$REMORA" copy --quiet "$(spec scratch beta)" out2
	same data out2
	stop s
	is "$status_of" 0 "exit status"
}

case_data_over_tls_with_either_loop() {
	local loop
	pki
	random_file data 8M
	for loop in epoll auto; do
		serve_tls "s$loop" data --loop $loop
		exits 0 "$REMORA" copy --loop $loop --quiet "$(spec data beta)" "out$loop"
		same data "out$loop"
	done
}

case_a_mount_over_tls() {
	pki
	[ -w /dev/fuse ] || skip "no /dev/fuse"
	random_file data 4M
	cp data copy
	serve_tls s data
	: >file
	mount_file m "$(spec data beta)" file
	same copy file
	printf 'changed' | dd of=file bs=1 seek=100000 conv=notrunc status=none
	unmount_file m file
	printf 'changed' | dd of=copy bs=1 seek=100000 conv=notrunc status=none
	same copy data
}

case_a_server_that_is_killed_and_comes_back_over_tls() {
	pki
	random_file data 48M
	serve_tls s data
	start l "$REMORA" link --listen 127.0.0.1:0 --to "$addr" --rate 200Mbit
	addr=$(head -n 1 l.ready)
	spawn c "$REMORA" copy --quiet "$(spec data beta)" out
	until [ "$(stat -c %b out* 2>/dev/null | sort -n | tail -n 1)" -gt 0 ] 2>/dev/null; do :; done
	stop s KILL
	start s "$REMORA" serve --listen "$(head -n 1 s.ready)" --tls-cert alpha.crt --tls-key alpha.key --tls-ca ca.crt data
	finished c
	is "$status_of" 0 "exit status of the copy"
	same data out
}

# ---- who does not get in ----

case_no_certificate() {
	pki
	serve_tls s secret-name=memory:1M
	refused "$(spec secret-name)" "cert=FILE" "it showed no certificate"
	lacks stderr secret-name:
}

case_a_certificate_of_another_ca() {
	pki
	make_ca other
	make_cert eve other DNS:beta.example
	serve_tls s memory:1M
	refused "$(spec memory eve)" "it is of another CA" "its certificate (eve, beta.example) is not of the CA in ca.crt"
}

case_an_expired_certificate() {
	pki
	make_cert old ca DNS:old.example -days -1
	serve_tls s memory:1M
	refused "$(spec memory old)" "it has expired" "its certificate (old, old.example) has expired, on 20"
}

case_a_server_whose_certificate_has_expired() {
	pki
	make_cert old ca IP:127.0.0.1 -days -1
	cert=old serve_tls s memory:1M
	refused "$(spec memory beta)" "the server's certificate (old, 127.0.0.1) has expired, on 20" \
		"our certificate has expired"
}

case_a_server_of_another_name() {
	pki
	serve_tls s memory:1M
	refused "$(spec memory beta server=gamma.example)" \
		"is for alpha, alpha.example, 127.0.0.1, not for gamma.example" "refused our certificate"
	exits 0 "$REMORA" info "$(spec memory beta server=alpha.example)"
	addr=localhost:${addr##*:}
	refused "$(spec memory beta)" "not for localhost"
	# The subject alone is no name of a server.
	refused "$(spec memory beta server=alpha)" "not for alpha"
}

case_a_server_of_another_ca() {
	pki
	make_ca other
	serve_tls s memory:1M
	refused "remoras://$addr/memory?ca=other.crt&cert=beta.crt&key=beta.key" \
		"the server's certificate (alpha, alpha.example, 127.0.0.1) is not of the CA in other.crt"
}

case_a_client_in_clear_and_a_server_in_clear() {
	pki
	serve_tls s memory:1M
	exits 3 timeout 20 "$REMORA" info "remora://$addr/memory"
	holds stderr "remoras://"
	holds s.err "it does not speak TLS"
	start plain "$REMORA" serve --listen 127.0.0.1:0 memory:1M
	addr=$(head -n 1 plain.ready)
	refused "$(spec memory beta)" "TLS"
}

case_openssl_s_client_sees_nothing_without_a_certificate() {
	pki
	serve_tls s secret-name=memory:1M
	# A hello that asks for the list, as good as can be.
	printf 'REMORA?\n\1\0\1\0\120\0\0\0' >hello
	head -c 16 /dev/urandom >>hello
	printf '\0\0\1\0\1\0\0\0\2\0\0\0\0\0\2\0' >>hello
	head -c 32 /dev/zero >>hello
	{ cat hello; timeout 3 tail -f /dev/null; } |
		timeout 20 openssl s_client -connect "$addr" -CAfile ca.crt -quiet >got 2>said || true
	is "$(wc -c <got)" 0 "bytes that came"
	holds said "certificate required"
	lacks said secret
	holds s.err "it showed no certificate"
	{ cat hello; timeout 3 tail -f /dev/null; } | timeout 20 openssl s_client -connect "$addr" -CAfile ca.crt \
		-cert beta.crt -key beta.key -verify_return_error -quiet >got 2>said || true
	grep -q secret-name got || { cat said; return 1; }
	# Nothing older, and nothing that could be used again.
	timeout 20 openssl s_client -connect "$addr" -tls1_2 -cert beta.crt -key beta.key </dev/null >got 2>&1 && return 1
	{ cat hello; timeout 3 tail -f /dev/null; } | timeout 20 openssl s_client -connect "$addr" -CAfile ca.crt \
		-cert beta.crt -key beta.key -sess_out ticket >got 2>&1 || true
	lacks got "Session Ticket arrived"
	[ ! -e ticket ]
}

# ---- rights ----

case_a_client_has_what_it_is_allowed_and_sees_no_more() {
	pki
	make_cert gamma ca DNS:gamma.example,IP:192.0.2.7
	random_file a 1M
	random_file b 1M
	serve_tls s a b hidden=memory:1M --listen "unix:$dir/s.sock" --allow beta.example=a:ro --allow gamma=a,b:ro \
		--allow 192.0.2.7=b --allow "uid:$(id -u)=*"
	addr=$(grep -v unix s.ready)
	exits 0 "$REMORA" list "remoras://$addr?ca=ca.crt&cert=beta.crt&key=beta.key"
	holds stdout "a "
	lacks stdout hidden
	lacks stdout "b "
	exits 0 "$REMORA" info "$(spec "" beta)" # the only one it may have
	grep -qE 'access +read$' stdout || { cat stdout; return 1; }
	refused "$(spec hidden beta)" 'there is no resource "hidden" for beta' 'it asked for "hidden"'
	cp stderr hidden.text
	refused "$(spec absent beta)" 'there is no resource "absent" for beta'
	# What it may not have looks like what is not there.
	sed -E 's/absent/hidden/; s/127\.0\.0\.1:[0-9]+//g' stderr >absent.text
	sed -E -i 's/127\.0\.0\.1:[0-9]+//g' hidden.text
	same hidden.text absent.text
	exits 1 "$REMORA" copy --quiet b "$(spec a beta)"
	exits 0 "$REMORA" copy --quiet a "$(spec b gamma)"
	exits 1 "$REMORA" copy --quiet b "$(spec a gamma)"
	same a b
	exits 0 "$REMORA" list "unix:$dir/s.sock"
	holds stdout hidden
}

case_rules_that_make_no_sense() {
	exits 2 "$REMORA" serve memory:1M --listen "unix:$dir/s.sock" --allow x
	holds stderr "WHO=NAME"
	exits 3 "$REMORA" serve memory:1M --listen "unix:$dir/s.sock" --allow x=y
	holds stderr '"y", which is not served'
	exits 2 "$REMORA" serve memory:1M --listen "unix:$dir/s.sock" --allow uid:x=memory
	holds stderr "uid:x"
}

# ---- secrets ----

secrets() {
	printf '# who: what\nbeta:%s\ngamma:%s\n' "$(openssl rand -hex 32)" \
		"$(openssl rand -hex 32)" >secrets
	chmod 600 secrets
}

case_data_with_a_secret_in_place_of_certificates() {
	random_file data 8M
	secrets
	start s "$REMORA" serve --listen 127.0.0.1:0 --psk secrets data hidden=memory:1M --allow beta=data
	addr=$(head -n 1 s.ready)
	exits 0 "$REMORA" copy --quiet "remoras://$addr/data?psk=secrets&identity=beta" out
	same data out
	exits 0 "$REMORA" list "remoras://$addr?psk=secrets&identity=beta"
	lacks stdout hidden
	refused "remoras://$addr/data?psk=secrets&identity=gamma" 'no resource "data" for gamma'
	exits 3 "$REMORA" info "remoras://$addr/data?psk=secrets&identity=delta"
	holds stderr 'has no secret for "delta"'
	printf 'beta:%s\ndelta:%s\n' "$(openssl rand -hex 32)" "$(openssl rand -hex 32)" >others
	chmod 600 others
	refused "remoras://$addr/data?psk=others&identity=beta" 'another secret for "beta"' 'another secret for "beta"'
	refused "remoras://$addr/data?psk=others&identity=delta" 'no secret for "delta"' "it has none of the secrets"
	pki
	refused "$(spec data beta)" "psk=FILE" "it has none of the secrets"
}

case_secrets_and_certificates_at_one_server() {
	pki
	secrets
	serve_tls s memory:1M --psk secrets
	exits 0 "$REMORA" info "$(spec memory beta)"
	exits 0 "$REMORA" info "remoras://$addr/memory?psk=secrets&identity=gamma"
	# A server that has the secret is known by it, and one that has only a certificate is not.
	stop s
	serve_tls s memory:1M
	refused "remoras://$addr/memory?psk=secrets&identity=gamma" "the server has no secret of this identity"
}

# ---- files ----

case_keys_that_others_may_read_are_refused() {
	pki
	secrets
	chmod 640 beta.key secrets
	serve_tls s memory:1M
	exits 3 "$REMORA" info "$(spec memory beta)"
	holds stderr "chmod 600 beta.key"
	exits 3 "$REMORA" serve memory:1M --listen 127.0.0.1:0 --psk secrets
	holds stderr "chmod 600 secrets"
}

case_files_that_do_not_fit() {
	pki
	exits 2 "$REMORA" serve memory:1M --listen 127.0.0.1:0 --tls-cert alpha.crt --tls-key beta.key --tls-ca ca.crt
	holds stderr "beta.key is not the key of the certificate alpha.crt"
	exits 2 "$REMORA" serve memory:1M --listen 127.0.0.1:0 --tls-cert alpha.crt --tls-key alpha.key
	holds stderr "--tls-ca is missing"
	exits 2 "$REMORA" serve memory:1M --listen 127.0.0.1:0 --tls-cert alpha.key --tls-key alpha.key --tls-ca ca.crt
	holds stderr "alpha.key: this is no certificate"
	exits 3 "$REMORA" serve memory:1M --listen 127.0.0.1:0 --tls-cert alpha.crt --tls-key alpha.key --tls-ca nowhere
	holds stderr nowhere
	exits 2 "$REMORA" info "remoras://127.0.0.1:1/x"
	holds stderr "ca=FILE is missing"
	exits 2 "$REMORA" info "remoras://127.0.0.1:1/x?ca=ca.crt&cert=beta.crt"
	holds stderr "the key is missing"
	printf 'x:12\n' >bad
	chmod 600 bad
	exits 2 "$REMORA" serve memory:1M --listen 127.0.0.1:0 --psk bad
	holds stderr "bad: line 1: a secret has 16 to 64 bytes"
}

case_sighup_reads_the_files_again_and_a_broken_one_changes_nothing() {
	local line
	pki
	make_ca other
	make_cert eve other DNS:eve.example
	serve_tls s memory:1M
	refused "$(spec memory eve)" "another CA"
	cat other.crt >>ca.crt
	kill -HUP "${pid_of[s]}"
	until grep -q "read again" s.err; do :; done
	exits 0 "$REMORA" info "$(spec memory eve)"
	cp ca.crt good
	echo garbage >ca.crt
	kill -HUP "${pid_of[s]}"
	until grep -q "stays in use" s.err; do :; done
	mv good ca.crt
	exits 0 "$REMORA" info "$(spec memory eve)"
	stop s
	is "$status_of" 0 "exit status"
}

# ---- keygen ----

case_keygen_makes_what_two_hosts_need() {
	local f
	random_file data 1M
	exits 0 "$REMORA" keygen keys --hosts localhost,127.0.0.1 laptop
	holds stdout "remora serve SPEC --listen 0.0.0.0:7000 --tls-cert keys/localhost.crt --tls-key keys/localhost.key"
	holds stdout '"remoras://localhost:7000?ca=keys/ca.crt&cert=keys/laptop.crt&key=keys/laptop.key"'
	for f in ca localhost laptop; do
		is "$(stat -c %a "keys/$f.key")" 600 "mode of $f.key"
		exits 0 openssl verify -x509_strict -CAfile keys/ca.crt "keys/$f.crt"
	done
	start s "$REMORA" serve data --listen 127.0.0.1:0 --tls-cert keys/localhost.crt --tls-key keys/localhost.key \
		--tls-ca keys/ca.crt --allow laptop=data:ro
	addr=$(head -n 1 s.ready)
	exits 0 "$REMORA" copy --quiet "remoras://$addr?ca=keys/ca.crt&cert=keys/laptop.crt&key=keys/laptop.key" out
	same data out
	exits 0 "$REMORA" info "remoras://localhost:${addr##*:}?ca=keys/ca.crt&cert=keys/laptop.crt&key=keys/laptop.key"
	# More of them, of the same CA.
	exits 0 "$REMORA" keygen --days 0 keys --hosts late
	exits 0 "$REMORA" keygen keys --hosts desktop
	refused "remoras://$addr?ca=keys/ca.crt&cert=keys/desktop.crt&key=keys/desktop.key" "none or several" "desktop"
	refused "remoras://$addr?ca=keys/ca.crt&cert=keys/late.crt&key=keys/late.key" "expired" "(late) has expired"
}

case_keygen_overwrites_nothing() {
	exits 0 "$REMORA" keygen -q keys --hosts a b
	is "$(cat stdout)" "" "what --quiet prints"
	cp -a keys before
	exits 1 "$REMORA" keygen keys --hosts c b
	holds stderr "keys/b.key is there already"
	diff -r keys before
	exits 2 "$REMORA" keygen keys
	holds stderr "--hosts is missing"
	exits 2 "$REMORA" keygen keys --hosts ../x
	holds stderr '"../x" is no host'
	exits 2 "$REMORA" keygen keys --hosts ca
}

case_keygen_makes_secrets() {
	random_file data 1M
	exits 0 "$REMORA" keygen keys --psk --hosts store laptop
	holds stdout "remora serve SPEC --listen 0.0.0.0:7000 --psk keys/secrets"
	holds stdout '"remoras://store:7000?psk=keys/laptop.psk&identity=laptop"'
	is "$(stat -c %a keys/secrets keys/laptop.psk | sort -u)" 600 "mode"
	start s "$REMORA" serve data --listen 127.0.0.1:0 --psk keys/secrets
	addr=$(head -n 1 s.ready)
	exits 0 "$REMORA" copy --quiet "remoras://$addr?psk=keys/laptop.psk&identity=laptop" out
	same data out
}

# ---- where it listens ----

case_an_address_that_others_reach_needs_tls() {
	pki
	exits 2 "$REMORA" serve memory:1M --listen 0.0.0.0:0
	holds stderr "--tls-cert"
	exits 2 "$REMORA" serve memory:1M --listen 0.0.0.0:0 --insecure --tls-cert alpha.crt --tls-key alpha.key --tls-ca ca.crt
	holds stderr "--insecure"
	start t "$REMORA" serve memory:1M --listen 0.0.0.0:0 --tls-cert alpha.crt --tls-key alpha.key --tls-ca ca.crt
	addr=127.0.0.1:$(sed 's/.*://' t.ready)
	exits 0 "$REMORA" info "$(spec memory beta)"
	start i "$REMORA" serve memory:1M --listen 0.0.0.0:0 --insecure
	exits 0 "$REMORA" info "remora://127.0.0.1:$(sed 's/.*://' i.ready)/memory"
}

# ---- strangers ----

case_hostile_bytes_at_the_tls_port_harm_nobody() {
	local i port before after
	pki
	random_file data 8M
	serve_tls s data
	port=${addr##*:}
	exits 0 "$REMORA" info "$(spec data beta)"
	before=$(awk '/VmRSS/ { print $2 }' "/proc/${pid_of[s]}/status")
	for i in $(seq 60); do
		random_file junk 64K
		case $((i % 4)) in
		0) printf '\026\003\001\100\000\001\000\077\374\003\003' >head ;; # a ClientHello of 16 KiB
		1) printf '\026\003\003\377\377' >head ;;
		2) printf '\026\003\001\000\005\001\377\377\377\003' >head ;; # one of 16 MiB
		3) : >head ;;
		esac
		(cat head junk >"/dev/tcp/127.0.0.1/$port") 2>/dev/null || true
	done
	exits 0 "$REMORA" copy --quiet "$(spec data beta)" out
	same data out
	after=$(awk '/VmRSS/ { print $2 }' "/proc/${pid_of[s]}/status")
	[ -n "${REMORA_SANITIZED-}" ] || less $((after - before)) 10240 "KiB more in memory"
}

run_cases
