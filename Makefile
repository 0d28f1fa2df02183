# SPDX-License-Identifier: Apache-2.0
# Forwards to meson; nothing is decided here. The build is in build/make.
PREFIX ?= /usr/local
DESTDIR ?=

all: build/make/build.ninja
	ninja -C build/make

build/make/build.ninja:
	meson setup --buildtype=release -Dtests=false --prefix=$(PREFIX) --libdir=lib build/make

# The loader looks for what is new only when it is told to; a package made with DESTDIR tells it by itself.
install: all
	DESTDIR=$(DESTDIR) meson install --no-rebuild -C build/make
	[ -n "$(DESTDIR)" ] || ldconfig

check:
	scripts/check

demo:
	scripts/demo

clean:
	rm -rf build/make

.PHONY: all install check demo clean
