// SPDX-License-Identifier: GPL-2.0
/*
 * Guest pages: take references on them without disturbing the guest, and tell which
 * have no memory behind them.
 *
 * References are FOLL_GET, not FOLL_PIN.  We only read the pages, and a read-only pin
 * would un-share them first: a save would un-merge KSM pages and copy what fork() shares
 * (mm/gup.c, gup_must_unshare()).  With a reference, a page that is replaced under us
 * (COW, hole punch) keeps the bytes it had when we took it, which is what a snapshot of
 * that moment wants, and reclaim and migration pass it by.
 *
 * A page is *untouched* when reading it would find zeros for which no memory exists yet.
 * That is decided by kind of mapping, never by the page table alone:
 *  - anonymous: an empty page table entry.  A swapped page has an entry.
 *  - shared memory (memfd, tmpfs): nothing in the file's page cache, where swapped pages
 *    have an entry too.  Its private mappings: that, under an empty page table entry.
 *  - hugetlbfs: no entry in the page table and nothing in the file (FOLL_DUMP tells).
 *  - everything else: nothing is.
 * Entries are read under their lock: reclaim, migration and KSM empty them for a moment.
 *
 * Nothing here waits for what a VMM controls.  Memory that a userfaultfd handler would
 * have to fill is an error, and FUSE files are refused.  A busy mmap lock, and a page of
 * a file that is to be read in, are for later: -EAGAIN.
 */
#include <linux/backing-dev.h>
#include <linux/fadvise.h>
#include <linux/file.h>
#include <linux/hugetlb.h>
#include <linux/magic.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/string.h>
#include <linux/userfaultfd_k.h>
#include <linux/xarray.h>

#include "compat.h"
#include "pages.h"
#include "region.h"

/* How often reading ahead is asked for a page, every 5 ms, before there is no memory for it. */
#define KVMSNAP_READ_AHEAD_TRIES	1000

/* Drop references on @nr pages that are contiguous from @page on.  Any context. */
void kvmsnap_pages_put(struct page *page, unsigned long nr)
{
	while (nr) {
		struct folio *folio = page_folio(page);
		unsigned long n = folio_nr_pages(folio) - folio_page_idx(folio, page);

		n = min(n, nr);
		/* A DAX device counts its pages' users one by one. */
		if (folio_is_zone_device(folio)) {
			n = 1;
			put_page(page);
		} else {
			folio_put_refs(folio, n);
		}
		page += n;
		nr -= n;
	}
}

bool kvmsnap_page_is_zero(struct page *page)
{
	void *addr = kmap_local_page(page);
	bool zero = !memchr_inv(addr, 0, PAGE_SIZE);

	kunmap_local(addr);
	return zero;
}

/* The hash of its bytes, never 0. */
u64 kvmsnap_page_hash(const siphash_key_t *key, struct page *page)
{
	void *addr = kmap_local_page(page);
	u64 hash = siphash(addr, PAGE_SIZE, key);

	kunmap_local(addr);
	return hash ?: 1;
}

/*
 * The run of page table entries from @addr on that are all empty, or all not, up to @end at
 * most and perhaps shorter than it is: returns its length in bytes.
 *
 * The mmap lock keeps the upper tables.  RCU keeps a table of PTEs that is being freed
 * (khugepaged, MADV_DONTNEED) until its lock is held and it is seen to be still in place.
 * What is found empty may be filled a moment later: a write after our read.
 */
static unsigned long kvmsnap_entries_run(struct mm_struct *mm, unsigned long addr,
					 unsigned long end, bool *empty)
{
	unsigned long start = addr;
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	spinlock_t *ptl;	/* the page table's */
	pte_t *pte;

	mmap_assert_locked(mm);
	*empty = true;
	if (pgd_none(*pgd))
		return pgd_addr_end(addr, end) - addr;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return p4d_addr_end(addr, end) - addr;
	pudp = pud_offset(p4d, addr);
	ptl = pud_lock(mm, pudp);
	pud = *pudp;
	spin_unlock(ptl);
	if (pud_none(pud))
		return pud_addr_end(addr, end) - addr;
	*empty = false;
	if (!pud_present(pud) || pud_leaf(pud))
		return pud_addr_end(addr, end) - addr;

	pmdp = pmd_offset(pudp, addr);
	end = pmd_addr_end(addr, end);
	rcu_read_lock();
	ptl = pmd_lock(mm, pmdp);
	pmd = *pmdp;
	spin_unlock(ptl);
	if (pmd_none(pmd) || !pmd_present(pmd) || pmd_leaf(pmd)) {
		*empty = pmd_none(pmd);
		goto out;
	}
	ptl = pte_lockptr(mm, &pmd);
	spin_lock(ptl);
	if (!pmd_same(pmd, READ_ONCE(*pmdp))) {
		/* The table has just gone: take the page as one with an entry. */
		end = start + PAGE_SIZE;
	} else {
		pte = pte_offset_kernel(&pmd, addr);
		*empty = pte_none(ptep_get(pte));
		do {
			addr += PAGE_SIZE;
			pte++;
		} while (addr < end && pte_none(ptep_get(pte)) == *empty);
		end = addr;
	}
	spin_unlock(ptl);
out:
	rcu_read_unlock();
	return end - start;
}

/* Must a fault there be answered by the VMM?  Not if it is just write protected. */
static bool kvmsnap_vma_needs_uffd(struct vm_area_struct *vma)
{
	return vma->vm_flags & __VM_UFFD_FLAGS & ~VM_UFFD_WP;
}

static long kvmsnap_untouched(struct page **pages, unsigned long bytes)
{
	memset(pages, 0, (bytes >> PAGE_SHIFT) * sizeof(*pages));
	return bytes >> PAGE_SHIFT;
}

/* The pages of a VMA's range, which all have memory or are to be faulted in. */
static long kvmsnap_pages_fault(struct vm_area_struct *vma, unsigned long start,
				unsigned long end, unsigned int flags, struct page **pages)
{
	return kvmsnap_gup_remote(vma->vm_mm, start, (end - start) >> PAGE_SHIFT,
				  flags | FOLL_GET | FOLL_HWPOISON, pages);
}

static long kvmsnap_pages_get_anon(struct vm_area_struct *vma, unsigned long start,
				   unsigned long end, struct page **pages)
{
	bool empty;

	/* No further than the run: a fault could allocate what lies beyond. */
	end = start + kvmsnap_entries_run(vma->vm_mm, start, end, &empty);
	if (empty)
		return kvmsnap_untouched(pages, end - start);
	return kvmsnap_pages_fault(vma, start, end, 0, pages);
}

static long kvmsnap_pages_get_shmem(struct vm_area_struct *vma, unsigned long start,
				    unsigned long end, struct page **pages)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	unsigned long first = linear_page_index(vma, start), next = first;
	unsigned long last = first + ((end - start) >> PAGE_SHIFT) - 1;
	bool empty = true;

	if (first >= DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
		return -EFAULT;
	if (!(vma->vm_flags & VM_SHARED))
		end = start + kvmsnap_entries_run(vma->vm_mm, start, end, &empty);

	/*
	 * Not by seeking for holes: a collapse by khugepaged looks like one (6.1), and
	 * seeking takes the inode's lock, which a writer may hold for as long as it likes.
	 */
	if (empty) {
		if (!xa_find(&mapping->i_pages, &next, last, XA_PRESENT))
			next = last + 1;
		if (next > first)
			return kvmsnap_untouched(pages, min(end - start,
							    (next - first) << PAGE_SHIFT));
		while (next <= last && xa_load(&mapping->i_pages, next))
			next++;
		end = min(end, start + ((next - first) << PAGE_SHIFT));
	}
	return kvmsnap_pages_fault(vma, start, end, 0, pages);
}

static long kvmsnap_pages_get_hugetlb(struct vm_area_struct *vma, unsigned long start,
				      unsigned long end, struct page **pages)
{
	unsigned long size = huge_page_size(hstate_vma(vma));
	bool empty = true;
	long ret;

	end = min(end, ALIGN(start + 1, size));
	/* Shared ones may share page tables, and have the file to tell. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		kvmsnap_entries_run(vma->vm_mm, start, end, &empty);
	ret = kvmsnap_pages_fault(vma, start, end, empty ? FOLL_DUMP : 0, pages);
	if (ret == -EFAULT && empty)
		return kvmsnap_untouched(pages, end - start);
	return ret;
}

/* Are pages read from a disk, into the page cache?  Nothing else is read ahead. */
static bool kvmsnap_mapping_is_read(const struct address_space *mapping)
{
	struct inode *inode = mapping->host;

	return (S_ISREG(inode->i_mode) || S_ISBLK(inode->i_mode)) && !IS_DAX(inode) &&
	       mapping->a_ops->read_folio && inode_to_bdi(inode) != &noop_backing_dev_info;
}

/*
 * The page at @readin->addr is not up to date, and has a folio or none.  What is to be done
 * about it, or has come of that: -EAGAIN, or an error.
 */
static long kvmsnap_readin_want(struct kvmsnap_readin *readin, struct vm_area_struct *vma,
				unsigned long end, struct folio *folio)
{
	struct file *file = vma->vm_file;

	if (folio) {
		if (!folio_trylock(folio))
			return -EAGAIN;
		if (folio_test_uptodate(folio) || folio->mapping != file->f_mapping) {
			folio_unlock(folio);
			return -EAGAIN;
		}
		/* Reading it has failed. */
		if (readin->read) {
			folio_unlock(folio);
			return -EIO;
		}
		/* Reading ahead has failed, or never knew it: it was written to in part. */
		folio_get(folio);
		readin->folio = folio;
	} else {
		readin->asked++;
		readin->pos = (loff_t)linear_page_index(vma, readin->addr) << PAGE_SHIFT;
		readin->bytes = end - readin->addr;
	}
	readin->read = folio;
	readin->file = get_file(file);
	return -EAGAIN;
}

/**
 * kvmsnap_readin_start() - read what kvmsnap_pages_get() has found to be missing, if any
 * @readin: that it was given
 *
 * Context: kernel thread, without an mm, which would outlive its process here; may sleep for
 * the file's device to take a request.
 */
void kvmsnap_readin_start(struct kvmsnap_readin *readin)
{
	struct file *file = readin->file;
	struct folio *folio = readin->folio;

	if (!file)
		return;
	if (folio) {
		/* Unlocks it, now or when it is read. */
		file->f_mapping->a_ops->read_folio(file, folio);
		folio_put(folio);
	} else {
		/* Not the file's own, which may wait for the inode's lock: a writer's, for long. */
		generic_fadvise(file, readin->pos, readin->bytes, POSIX_FADV_WILLNEED);
	}
	readin->folio = NULL;
	readin->file = NULL;
	fput(file);
}

/*
 * A fault on what is not in the page cache waits for the disk where nothing is read ahead
 * (MADV_RANDOM, many misses), FOLL_NOWAIT or not: so there is none.  Asking for it may come to
 * nothing, for want of memory that is to be had without waiting, or because the page goes again
 * before we have seen it.
 */
static long kvmsnap_pages_get_file(struct vm_area_struct *vma, unsigned long start,
				   unsigned long end, struct page **pages,
				   struct kvmsnap_readin *readin)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	pgoff_t index = linear_page_index(vma, start);
	struct folio *folio = NULL;
	bool empty = true;
	long ret;

	if (!(vma->vm_flags & VM_SHARED))
		end = start + kvmsnap_entries_run(vma->vm_mm, start, end, &empty);
	if (empty && kvmsnap_mapping_is_read(mapping)) {
		/* Asked in this turn. */
		if (readin->file)
			return -EAGAIN;
		if (index >= DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
			return -EFAULT;
		if (readin->addr != start)
			*readin = (struct kvmsnap_readin){ .addr = start };
		/* NULL before 6.3. */
		folio = filemap_get_folio(mapping, index);
		if (IS_ERR_OR_NULL(folio))
			folio = NULL;
		if (!folio && readin->asked == KVMSNAP_READ_AHEAD_TRIES)
			return -ENOMEM;
		if (!folio || !folio_test_uptodate(folio)) {
			ret = kvmsnap_readin_want(readin, vma, end, folio);
			goto out;
		}
		/* While we have it, it stays. */
		end = min(end, start + ((folio_next_index(folio) - index) << PAGE_SHIFT));
	}
	ret = kvmsnap_pages_fault(vma, start, end, FOLL_NOWAIT, pages);
	if (!ret)
		ret = -EAGAIN;
out:
	if (folio)
		folio_put(folio);
	return ret;
}

/*
 * The first pages of a range, of which get_user_pages_fast_only() found none.  At least
 * one, or an error.
 */
static long kvmsnap_pages_get_slow(struct mm_struct *mm, unsigned long start, unsigned long end,
				   struct page **pages, struct kvmsnap_readin *readin)
{
	struct vm_area_struct *vma;
	unsigned long magic = 0;
	long ret = -EFAULT;

	/* Its holder may be waiting for the VMM. */
	if (!mmap_read_trylock(mm))
		return -EAGAIN;
	vma = vma_lookup(mm, start);
	if (!vma || (vma->vm_flags & (VM_IO | VM_PFNMAP)) || !(vma->vm_flags & VM_READ))
		goto out;
	end = min(end, vma->vm_end);
	/* What is mapped: the inode of a device's node is one of devtmpfs. */
	if (vma->vm_file)
		magic = vma->vm_file->f_mapping->host->i_sb->s_magic;

	if (kvmsnap_vma_needs_uffd(vma)) {
		/* 6.1's hugetlb doesn't know FOLL_NOFAULT. */
		if (!is_vm_hugetlb_page(vma))
			ret = kvmsnap_pages_fault(vma, start, end, FOLL_NOFAULT, pages);
		if (ret == -EFAULT)
			ret = -EBUSY;
	} else if (vma_is_anonymous(vma)) {
		ret = kvmsnap_pages_get_anon(vma, start, end, pages);
	} else if (is_vm_hugetlb_page(vma)) {
		ret = kvmsnap_pages_get_hugetlb(vma, start, end, pages);
	} else if (magic == TMPFS_MAGIC || magic == GUEST_MEMFD_MAGIC) {
		ret = kvmsnap_pages_get_shmem(vma, start, end, pages);
	} else if (magic == FUSE_SUPER_MAGIC) {
		/* Reading a page in can wait for the server, without a way out. */
		ret = -EOPNOTSUPP;
	} else {
		ret = kvmsnap_pages_get_file(vma, start, end, pages, readin);
	}
out:
	mmap_read_unlock(mm);
	return ret ?: -EFAULT;
}

/**
 * kvmsnap_pages_get() - take references on a run of guest pages
 * @mm: the VM's; the caller holds mmget() and runs under kthread_use_mm()
 * @start: address of the first page
 * @nr: number of pages
 * @pages: @nr entries, filled from the first on: a page with a reference, or NULL for one
 *	that is untouched
 * @readin: what this function knows from one call to the next, for the same run; the caller
 *	hands it to kvmsnap_readin_start() when it is through with @mm
 *
 * Context: kernel thread, may sleep, but not for anything in the VMM's hand; no locks.
 * Return: number of entries filled, fewer than @nr when an error ended the run.  If there
 * are none, the error: -EFAULT unreadable, -EBUSY waits for userfaultfd, -EOPNOTSUPP a FUSE
 * file, -EIO reading a file failed, -EHWPOISON, -ENOMEM, -ESRCH the process is being reaped, or
 * -EAGAIN: come back later, without @mm.
 */
long kvmsnap_pages_get(struct mm_struct *mm, unsigned long start, unsigned long nr,
		       struct page **pages, struct kvmsnap_readin *readin)
{
	unsigned long done = 0;

	while (done < nr) {
		unsigned long addr = start + (done << PAGE_SHIFT);
		long n;

		n = get_user_pages_fast_only(addr, nr - done, 0, pages + done);
		if (n <= 0)
			n = kvmsnap_pages_get_slow(mm, addr, start + (nr << PAGE_SHIFT),
						   pages + done, readin);
		if (n < 0)
			return done ?: n;
		done += n;
	}
	/*
	 * The OOM killer's reaper empties a dying process's page tables: what then seems to be
	 * untouched, or is the file's page where private memory is of a file, was the guest's own.
	 */
	smp_rmb();
	if (check_stable_address_space(mm)) {
		while (done)
			if (pages[--done])
				kvmsnap_pages_put(pages[done], 1);
		return -ESRCH;
	}
	return done;
}

/**
 * kvmsnap_region_maps_file() - is the region mapped from that file?
 * @mm: the VM's, with mmget()
 * @region: what is saved
 * @file: what it is saved to
 *
 * Writing a page to the file that it comes from would change the guest.
 * Context: process context of a caller who may be killed; takes the mmap lock.
 * Return: 1, 0, or -EINTR.
 */
int kvmsnap_region_maps_file(struct mm_struct *mm, const struct kvmsnap_region *region,
			     const struct file *file)
{
	unsigned long addr = region->hva, end = addr + kvmsnap_region_bytes(region);
	struct vm_area_struct *vma;
	int found = 0;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	while (!found && addr < end) {
		vma = find_vma(mm, addr);
		if (!vma || vma->vm_start >= end)
			break;
		found = vma->vm_file && vma->vm_file->f_mapping == file->f_mapping;
		addr = vma->vm_end;
	}
	mmap_read_unlock(mm);
	return found;
}
