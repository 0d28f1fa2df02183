# SPDX-License-Identifier: Apache-2.0
# Forwards to meson; nothing is decided here. The build is in build/make.
PREFIX ?= /usr/local
DESTDIR ?=

all: build/make/build.ninja
	ninja -C build/make

build/make/build.ninja:
	meson setup --buildtype=release -Dtests=false --prefix=$(PREFIX) build/make

install: all
	DESTDIR=$(DESTDIR) meson install --no-rebuild -C build/make

check:
	scripts/check

demo:
	scripts/demo

clean:
	rm -rf build/make

.PHONY: all install check demo clean
