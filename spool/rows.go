package spool

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy/internal/mta"
)

// rows is a table of small values without pointers. It grows by pages outside of Go's heap: growing copies nothing, and
// the garbage collector neither looks at them nor keeps as much again in reserve for them.
type rows[T any] struct {
	pages [][]T
	used  uint32
	free  []uint32
}

const pageRows = 4096

func (t *rows[T]) at(i uint32) *T { return &t.pages[i/pageRows][i%pageRows] }

func (t *rows[T]) add() uint32 {
	if n := len(t.free); n > 0 {
		i := t.free[n-1]
		t.free = t.free[:n-1]
		return i
	}
	if int(t.used) == len(t.pages)*pageRows {
		t.pages = append(t.pages, newPage[T]())
	}
	t.used++
	return t.used - 1
}

func (t *rows[T]) remove(i uint32) {
	var zero T
	*t.at(i) = zero
	t.free = append(t.free, i)
}

// clear gives all pages back.
func (t *rows[T]) clear() {
	for _, p := range t.pages {
		freePage(p)
	}
	*t = rows[T]{}
}

func pageSize[T any]() int {
	var zero T
	return pageRows * int(unsafe.Sizeof(zero))
}

func newPage[T any]() []T {
	b, err := unix.Mmap(-1, 0, pageSize[T](), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]T, pageRows)
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), pageRows)
}

func freePage[T any](p []T) {
	// It fails for a page of Go's own heap, which is not mapped by unix.Mmap; that one is collected.
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(p))), pageSize[T]()))
}

// idTable finds a message's row by its ID: a hash table with open addressing that holds row numbers alone.
type idTable struct {
	slots []uint32 // row+1; 0 is empty
	n     int
}

// hash takes the octets of an ID that are random (RFC 9562, 5.7).
func hash(id *mta.ID) uint64 {
	return binary.LittleEndian.Uint64(id[8:]) >> 8 * 0x9e3779b97f4a7c15 >> 20
}

// find gives the slot of an ID, or the empty one where it would be.
func (t *idTable) find(id *mta.ID, msgs *rows[msgRow]) (slot int, ok bool) {
	mask := len(t.slots) - 1
	if mask < 0 {
		return 0, false
	}
	for slot = int(hash(id)) & mask; t.slots[slot] != 0; slot = (slot + 1) & mask {
		if msgs.at(t.slots[slot]-1).id == *id {
			return slot, true
		}
	}
	return slot, false
}

// add takes in a row that is not there yet.
func (t *idTable) add(row uint32, msgs *rows[msgRow]) {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.resize(max(1024, 2*len(t.slots)), msgs)
	}
	slot, _ := t.find(&msgs.at(row).id, msgs)
	t.slots[slot] = row + 1
	t.n++
}

// remove closes the gap behind it, so that every row is found from its own slot on.
func (t *idTable) remove(id *mta.ID, msgs *rows[msgRow]) {
	slot, ok := t.find(id, msgs)
	if !ok {
		return
	}
	mask := len(t.slots) - 1
	t.n--
	for next := (slot + 1) & mask; t.slots[next] != 0; next = (next + 1) & mask {
		home := int(hash(&msgs.at(t.slots[next]-1).id)) & mask
		if (next-home)&mask >= (next-slot)&mask {
			t.slots[slot] = t.slots[next]
			slot = next
		}
	}
	t.slots[slot] = 0
}

func (t *idTable) resize(n int, msgs *rows[msgRow]) {
	old := t.slots
	t.slots = make([]uint32, n)
	for _, row := range old {
		if row != 0 {
			slot, _ := t.find(&msgs.at(row-1).id, msgs)
			t.slots[slot] = row
		}
	}
}
