# SPDX-License-Identifier: GPL-2.0
# kvmsnap: make help lists the targets.

KDIR   ?= /lib/modules/$(shell uname -r)/build
PREFIX ?= /usr/local
CC     ?= cc

all: modules helper

help:
	@echo 'Build:'
	@echo '  all               modules and helper (default)'
	@echo '  modules           kmod/kvmsnap.ko for the running kernel, or KDIR=/lib/modules/X/build'
	@echo '  helper            libkvmsnap and the kvmsnap command (libmnl, liburing, jansson, libsodium)'
	@echo '  install           modules_install and install-helper; DESTDIR and PREFIX count'
	@echo '  modules_install   kvmsnap.ko into /lib/modules'
	@echo '  install-helper    command, library, headers, manual page and udev rule into PREFIX'
	@echo '  clean'
	@echo 'Try, in a test machine that is built on the first use (root, Debian, some minutes):'
	@echo '  demo              save a running QEMU guest through the module, restore it with stock QEMU'
	@echo '  test              all tests; KERNEL=6.1|6.12|7.3, TESTS="names"'
	@echo '  test-long         100 random rounds of live saves each, of the small VMM and of QEMU; 50 checkpoints,'
	@echo '                    power lost at every flush, 200 kills, on each file system'
	@echo '  test-soak         eight guests saved, interrupted and killed at random; TIME=1800 seconds'
	@echo '  test-broken       builds broken on purpose, which the tests must catch; TESTS="names"'
	@echo '  test-kernels      all tests on each kernel, with QEMU 10.0 and the backported one between them'
	@echo '  test-sanitized    the command under ASan and UBSan, and some of it under valgrind'
	@echo '  test-debug        on a kernel with KASAN, lockdep and the like, built on the first use; TESTS="names"'
	@echo '  fuzz              the parsers of files, streams and QMP, with libFuzzer; TIME=60 seconds each, TESTS="names"'
	@echo '  fuzz-ioctls       hostile VMMs on the debug kernel, guided by KCOV; COUNT=1000000 ioctls'
	@echo '  lint              checkpatch, sparse, coccicheck, gcc, clang, cppcheck, shellcheck and our own; CHECKS="names"'
	@echo '  bench             side by side with stock QEMU; writes tables into README.md; PARTS="stopped live"'
	@echo '  shell             a command in the test machine: make shell CMD="kvmsnap --help"'

modules:
	$(MAKE) -C $(KDIR) M=$(CURDIR)/kmod modules

modules_install:
	$(MAKE) -C $(KDIR) M=$(CURDIR)/kmod INSTALL_MOD_PATH=$(DESTDIR) modules_install

helper:
	$(MAKE) -C helper all

tests: helper
	$(MAKE) -C tools/testing/vmm all
	$(MAKE) -C tools/testing/selftests/kvmsnap all
	$(MAKE) -C tools/testing/guest all

install: modules_install install-helper

install-helper:
	$(MAKE) -C helper install

install-tests:
	$(MAKE) -C tools/testing/vmm install
	$(MAKE) -C tools/testing/selftests/kvmsnap install
	$(MAKE) -C tools/testing/guest install

clean:
	-$(MAKE) -C $(KDIR) M=$(CURDIR)/kmod clean
	$(MAKE) -C helper clean
	$(MAKE) -C tools/testing/selftests/kvmsnap clean
	$(MAKE) -C tools/testing/guest clean
	$(MAKE) -C tools/testing/vmm clean

VMKERNEL := $(or $(KERNEL),6.12)
VM := tools/testing/vm/run --kernel $(VMKERNEL)

demo:
	$(VM) --disk 4G -- tools/testing/demo

test:
	tools/testing/test $(TESTS)

test-long: export KVMSNAP_QEMU_ROUNDS = 10
test-long: export KVMSNAP_KILLS = 200
test-long: export KVMSNAP_CHECKPOINTS = 50
test-long: export KVMSNAP_EVERY = 2s
test-long: export KVMSNAP_SLOW = 4
test-long:
	KVMSNAP_TEST_ARGS="-t random_rounds" tools/testing/test $(foreach i,1 2 3 4 5 6 7 8 9 10,live_test live_qemu_test.sh)
	KVMSNAP_TEST_ARGS="-t under" tools/testing/test $(addprefix generation_test.sh@,xfs ext4 btrfs)
	tools/testing/test crash_test.sh $(addprefix powerloss_test.sh@,xfs ext4 btrfs)

# Eight guests for half an hour.
test-soak:
	KVMSNAP_SOAK=$(or $(TIME),1800) KVMSNAP_SLOW=3 tools/testing/test soak_test.sh

test-broken:
	tools/testing/test-broken $(TESTS)

test-debug:
	tools/testing/test-debug $(TESTS)

test-kernels:
	tools/testing/test-kernels

test-sanitized:
	KVMSNAP_SANITIZE=1 KVMSNAP_SLOW=2 tools/testing/test cli_test.sh qemu_test.sh generation_test.sh generation_test.sh@ext4 -- \
		live_qemu_test.sh live_faults_test.sh restore_test.sh
	KVMSNAP_VALGRIND=1 KVMSNAP_SLOW=4 KVMSNAP_TEST_ARGS="-t files" tools/testing/test cli_test.sh

fuzz-ioctls:
	KVMSNAP_FUZZ=$(or $(COUNT),1000000) KVMSNAP_KEEP=$(KEEP) tools/testing/test-debug fuzz_test

lint:
	tools/testing/lint $(CHECKS)

fuzz:
	tools/testing/fuzz/run $(or $(TIME),60) $(TESTS)

bench:
	tools/testing/bench/bench $(PARTS)

shell:
	$(VM) --disk 4G -- sh -c '$(CMD)'

export KERNEL KDIR PREFIX CC DESTDIR
.PHONY: all help modules modules_install helper tests install install-helper install-tests \
	clean demo test test-long test-broken test-debug test-kernels test-sanitized test-soak fuzz fuzz-ioctls lint \
	bench shell
