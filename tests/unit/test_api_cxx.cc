/* SPDX-License-Identifier: Apache-2.0 */
/* The public header and the shared library from C++. TAP. */
#include <cstdio>
#include <cstring>

#include <remora/remora.h>

static int number;

static bool tell(bool ok, const char *what)
{
	std::printf("%sok %d - %s\n", ok ? "" : "not ", ++number, what);
	return ok;
}

int main()
{
	remora_options options = {};
	remora_error error = {};
	remora *r = nullptr;
	remora_store *s = nullptr;
	bool ok = true;

	options.struct_size = sizeof(options);
	int err = remora_open(&r, "memory:1M", &options, &error);
	if (err) {
		std::printf("1..0 # SKIP %s\n", error.text);
		return 0;
	}
	std::printf("1..4\n");
	ok &= tell(!std::strcmp(remora_version(), "0.1.0"), "the version");
	auto *data = static_cast<unsigned char *>(remora_data(r));
	std::memset(data + 1000, 7, 5000);
	ok &= tell(remora_size(r) == 1 << 20 && data[5999] == 7 && data[6000] == 0, "memory is read and written");
	ok &= tell(remora_flush(r) == 0 && remora_close(r) == 0, "flushed and closed");
	ok &= tell(remora_store_open(&s, "memory:1M", nullptr, &error) == 0 && remora_store_size(s) == 1 << 20,
		   "a store is used directly");
	remora_store_close(s);
	return ok ? 0 : 1;
}
