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
 *  - shared memory (memfd, tmpfs): a hole of the file.  Its private mappings: a hole of
 *    the file under an empty entry.
 *  - hugetlbfs: neither in the page table nor in the file (FOLL_DUMP tells).
 *  - everything else: nothing is.
 *
 * Nothing here waits for what a VMM controls.  GUP without FOLL_UNLOCKABLE never sleeps
 * in userfaultfd: the fault fails instead (fs/userfaultfd.c, handle_userfault()).  Pages
 * of a file system, which may be FUSE, are asked for with FOLL_NOWAIT.
 */
#include <linux/file.h>
#include <linux/hugetlb.h>
#include <linux/magic.h>
#include <linux/pagemap.h>
#include <linux/string.h>
#include <linux/userfaultfd_k.h>

#include "compat.h"
#include "pages.h"
#include "region.h"

/* Drop references on @nr pages that are contiguous from @page on.  Any context. */
void kvmsnap_pages_put(struct page *page, unsigned long nr)
{
	while (nr) {
		struct folio *folio = page_folio(page);
		unsigned long n = folio_nr_pages(folio) - folio_page_idx(folio, page);

		n = min(n, nr);
		folio_put_refs(folio, n);
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

void kvmsnap_seeker_release(struct kvmsnap_seeker *seeker)
{
	if (seeker->file)
		fput(seeker->file);
	seeker->file = NULL;
	seeker->inode = NULL;
}

/*
 * How many bytes from @addr on have empty page table entries?  0 when the first has one.
 * At most up to @end, and perhaps fewer than there are.
 *
 * The mmap lock keeps the upper tables; RCU keeps a table of PTEs that is being freed
 * (khugepaged, MADV_DONTNEED).  What is found empty may be filled a moment later: that is
 * then a write after our read.
 */
static unsigned long kvmsnap_empty_bytes(struct mm_struct *mm, unsigned long addr,
					 unsigned long end)
{
	unsigned long start = addr;
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;

	mmap_assert_locked(mm);
	if (pgd_none(*pgd))
		return pgd_addr_end(addr, end) - addr;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return p4d_addr_end(addr, end) - addr;
	pudp = pud_offset(p4d, addr);
	pud = READ_ONCE(*pudp);
	if (pud_none(pud))
		return pud_addr_end(addr, end) - addr;
	if (!pud_present(pud) || pud_leaf(pud))
		return 0;
	pmdp = pmd_offset(pudp, addr);

	end = pmd_addr_end(addr, end);
	rcu_read_lock();
	pmd = READ_ONCE(*pmdp);
	if (pmd_none(pmd)) {
		addr = end;
	} else if (pmd_present(pmd) && !pmd_leaf(pmd)) {
		pte_t *pte = pte_offset_kernel(&pmd, addr);

		while (addr < end && pte_none(ptep_get_lockless(pte))) {
			addr += PAGE_SIZE;
			pte++;
		}
	}
	rcu_read_unlock();
	return addr - start;
}

/*
 * The extent of a memory file at @pos: a hole (returns 1) or data (0), up to *@end.  Asked
 * on a descriptor of our own, because seeking moves the file position.
 */
static int kvmsnap_seek_hole(struct kvmsnap_seeker *seeker, struct file *file, loff_t pos,
			     loff_t *end)
{
	struct inode *inode = file_inode(file);
	loff_t data, hole;

	if (!seeker->file || seeker->inode != inode) {
		struct file *own = dentry_open(&file->f_path, O_RDONLY | O_LARGEFILE, file->f_cred);

		kvmsnap_seeker_release(seeker);
		if (IS_ERR(own))
			return PTR_ERR(own);
		seeker->file = own;
		seeker->inode = inode;
	}

	if (pos >= i_size_read(inode))
		return -EFAULT;
	data = vfs_llseek(seeker->file, pos, SEEK_DATA);
	if (data == -ENXIO)
		return 1;
	if (data < 0)
		return data;
	if (data > pos) {
		*end = min(*end, data);
		return 1;
	}
	hole = vfs_llseek(seeker->file, pos, SEEK_HOLE);
	if (hole < 0)
		return hole;
	*end = min(*end, hole);
	return 0;
}

/* Would a fault there be answered by the VMM? */
static bool kvmsnap_vma_needs_uffd(struct vm_area_struct *vma)
{
	return userfaultfd_missing(vma) || userfaultfd_minor(vma);
}

static long kvmsnap_untouched(struct page **pages, unsigned long bytes)
{
	memset(pages, 0, (bytes >> PAGE_SHIFT) * sizeof(*pages));
	return bytes >> PAGE_SHIFT;
}

/* Pages of a memory file.  Enters with the mmap lock held, leaves without. */
static long kvmsnap_pages_get_shmem(struct mm_struct *mm, struct kvmsnap_seeker *seeker,
				    struct vm_area_struct *vma, unsigned long start,
				    unsigned long end, struct page **pages)
{
	loff_t pos = ((loff_t)vma->vm_pgoff << PAGE_SHIFT) + (start - vma->vm_start);
	loff_t pos_end = pos + (end - start);
	struct file *file = get_file(vma->vm_file);
	unsigned long empty = end - start;
	long ret;

	if (!(vma->vm_flags & VM_SHARED))
		empty = kvmsnap_empty_bytes(mm, start, end);
	mmap_read_unlock(mm);

	ret = kvmsnap_seek_hole(seeker, file, pos, &pos_end);
	if (ret < 0)
		goto out;
	end = start + (pos_end - pos);
	if (ret && empty) {
		ret = kvmsnap_untouched(pages, min(empty, end - start));
		goto out;
	}

	/* Something else may be mapped there by now: then begin again. */
	mmap_read_lock(mm);
	vma = vma_lookup(mm, start);
	if (vma && vma->vm_file == file && !kvmsnap_vma_needs_uffd(vma))
		ret = kvmsnap_gup_remote(mm, start, (min(end, vma->vm_end) - start) >> PAGE_SHIFT,
					 FOLL_GET, pages);
	else
		ret = -EAGAIN;
	mmap_read_unlock(mm);
out:
	fput(file);
	return ret ?: -EFAULT;
}

/*
 * The first pages of a range, of which get_user_pages_fast_only() found none.  At least
 * one, or an error.
 */
static long kvmsnap_pages_get_slow(struct mm_struct *mm, struct kvmsnap_seeker *seeker,
				   unsigned long start, unsigned long end, struct page **pages)
{
	unsigned int flags = FOLL_GET;
	struct vm_area_struct *vma;
	unsigned long empty;
	bool armed;
	long ret;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, start);
	if (!vma || (vma->vm_flags & (VM_IO | VM_PFNMAP)) || !(vma->vm_flags & VM_READ)) {
		ret = -EFAULT;
		goto out;
	}
	end = min(end, vma->vm_end);
	armed = kvmsnap_vma_needs_uffd(vma);

	if (vma_is_anonymous(vma) && !armed) {
		empty = kvmsnap_empty_bytes(mm, start, end);
		if (empty) {
			ret = kvmsnap_untouched(pages, empty);
			goto out;
		}
	} else if (is_vm_hugetlb_page(vma)) {
		if (!armed)
			flags |= FOLL_DUMP;
	} else if (vma->vm_file && file_inode(vma->vm_file)->i_sb->s_magic == TMPFS_MAGIC) {
		if (!armed)
			return kvmsnap_pages_get_shmem(mm, seeker, vma, start, end, pages);
	} else if (vma->vm_file) {
		flags |= FOLL_NOWAIT;
	}

	ret = kvmsnap_gup_remote(mm, start, (end - start) >> PAGE_SHIFT, flags, pages);
	if (ret == -EFAULT && (flags & FOLL_DUMP)) {
		unsigned long size = huge_page_size(hstate_vma(vma));

		ret = kvmsnap_untouched(pages, min(end, ALIGN(start + 1, size)) - start);
	} else if (ret == -EFAULT && armed) {
		ret = -EBUSY;
	} else if (!ret && (flags & FOLL_NOWAIT)) {
		ret = -EAGAIN;
	}
out:
	mmap_read_unlock(mm);
	return ret ?: -EFAULT;
}

/**
 * kvmsnap_pages_get() - take references on a run of guest pages
 * @mm: the VM's; the caller holds mmget() and runs under kthread_use_mm()
 * @seeker: of the calling worker
 * @start: address of the first page
 * @nr: number of pages
 * @pages: @nr entries, filled from the first on: a page with a reference, or NULL for one
 *	that is untouched
 *
 * Context: kernel thread, may sleep, but not for anything in the VMM's hand; no locks.
 * Return: number of entries filled, fewer than @nr when an error ended the run.  If there
 * are none, the error: -EFAULT unreadable, -EBUSY waits for userfaultfd, -EAGAIN a page
 * is being read in (come back later, without @mm), or what GUP or the file returned.
 */
long kvmsnap_pages_get(struct mm_struct *mm, struct kvmsnap_seeker *seeker,
		       unsigned long start, unsigned long nr, struct page **pages)
{
	unsigned long done = 0;

	while (done < nr) {
		unsigned long addr = start + (done << PAGE_SHIFT);
		long n;

		n = get_user_pages_fast_only(addr, nr - done, 0, pages + done);
		if (n <= 0)
			n = kvmsnap_pages_get_slow(mm, seeker, addr, start + (nr << PAGE_SHIFT),
						   pages + done);
		if (n < 0)
			return done ?: n;
		done += n;
	}
	return done;
}

/*
 * Is the region mapped from that file?  Writing a page to the file that it comes from
 * would change the guest.  Takes the mmap lock; a dead mm maps nothing.
 */
bool kvmsnap_region_maps_file(struct mm_struct *mm, const struct kvmsnap_region *region,
			      const struct file *file)
{
	unsigned long addr = region->hva, end = addr + kvmsnap_region_bytes(region);
	struct vm_area_struct *vma;
	bool found = false;

	mmap_read_lock(mm);
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
