package spool

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"understudy/internal/mta"
)

// journal is the file that a new generation's commits go to: what one caller writes is one frame, its entries and its
// content. It is what a 250 hangs on, and where content stays: the database behind it is told of the entries alone, and
// is made anew from the journal after a crash. It grows only until its generation is closed; after that it is read.
//
// It is written by write(2), where a full disk is an error, and where a sync costs nothing for each page, as it does
// with a mapping on several processors.
type journal struct {
	f     *os.File
	aead  cipher.AEAD  // nil: not encrypted
	end   atomic.Int64 // where the next frame goes; changed by database.run alone
	limit int64        // end may not be more; 0: nothing is written any more
	seed  uint32       // of all checksums: content can't hold what would be taken for a frame

	// What follows is used by database.run alone: frames on their way.
	start   int64 // where the group begins
	pieces  [][]byte
	scratch []byte
}

const (
	journalFile  = "journal"
	journalMagic = "USJRNL1\n"
	journalHead  = int64(len(journalMagic) + saltSize)
	frameMagic   = 0xf55e11a7
	// frameHead is: magic, octets from the beginning of the group, length of the entries, length of the contents,
	// CRC-32C of the journal's head, the frame's place, and all but the magic and itself: each 4 octets.
	frameHead   = 20
	maxContents = 4 << 20 // of one group, unless one caller alone has more
)

// createJournal makes the journal of a new generation and takes its room on disk.
func createJournal(dir string, limit int64, key []byte, sync func(*os.File) error) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	head := make([]byte, journalHead)
	copy(head, journalMagic)
	rand.Read(head[len(journalMagic):]) // never returns an error (crypto/rand)
	j := &journal{f: f, limit: limit}
	j.end.Store(journalHead)
	err = preallocate(f, limit)
	if errors.Is(err, errNoPrealloc) { // the reserve has to do
		err = nil
	}
	if err == nil {
		err = writeZeros(f, limit)
	}
	if err == nil {
		_, err = f.WriteAt(head, 0)
	}
	if err == nil {
		err = sync(f)
	}
	if err == nil {
		err = j.unlock(head, key)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("take room for %s: %w", f.Name(), err)
	}
	return j, nil
}

// writeZeros writes to all of a file: a sync of what was never written to has to note that it is now, which takes as long
// again as the sync itself. It is done in steps, so that mail that is being stored does not wait behind all of it.
func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(size-at, int64(len(zeros)))], at); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// openJournal opens a journal for reading; nil if there is none.
func openJournal(dir string, key []byte) (*journal, error) {
	f, err := os.Open(filepath.Join(dir, journalFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j := &journal{f: f}
	// A damaged head is no reason not to look at content, which has checksums of its own.
	head := make([]byte, journalHead)
	_, err = f.ReadAt(head, 0)
	if err == nil || err == io.EOF {
		err = j.unlock(head, key)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) unlock(head, key []byte) (err error) {
	j.seed = crc32.Checksum(head, castagnoli)
	if key != nil {
		j.aead, err = sealCipher(key, head[len(journalMagic):], "understudy spool journal")
	}
	return err
}

// fits reports whether a group has room.
func (j *journal) fits(group []*write) bool {
	if j.limit == 0 {
		return false
	}
	n := j.end.Load()
	for _, w := range group {
		n += w.length + j.overhead(w)
	}
	return n <= j.limit
}

// overhead is an upper bound for what a frame takes besides its octets.
func (j *journal) overhead(w *write) int64 {
	const entry, seal = 16, 16
	return frameHead + seal + int64(len(w.entries))*(entry+seal)
}

// write writes a group. It is not on stable storage then.
func (j *journal) write(group []*write) error {
	j.start = j.end.Load()
	j.pieces, j.scratch = j.pieces[:0], j.scratch[:0]
	at := j.start
	for _, w := range group {
		at = j.frame(w.entries, at)
	}
	err := writePieces(j.f, j.pieces, j.start)
	clear(j.pieces)
	if cap(j.scratch) > maxContents {
		j.scratch = nil
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", j.f.Name(), err)
	}
	j.end.Store(at)
	return nil
}

// frame adds the frame of one caller, to lie at at, and returns its end. Records of messages learn where their content
// came to lie.
func (j *journal) frame(entries []entry, at int64) (end int64) {
	first := len(j.pieces)
	j.pieces = append(j.pieces, nil) // the head and the entries
	size := entriesSize(entries)
	if j.aead != nil {
		size += j.aead.Overhead()
	}
	end = at + frameHead + int64(size)
	for i := range entries {
		e := &entries[i]
		if e.content == nil {
			continue
		}
		placeContent(e.value, end)
		b := j.seal(e.content, end)
		j.pieces = append(j.pieces, b)
		end += int64(len(b))
	}
	// A scratch that grows leaves earlier pieces where they were.
	begin := len(j.scratch)
	b := append(j.scratch, make([]byte, frameHead)...)
	b = appendEntries(b, entries)
	if j.aead != nil {
		plain := bytes.Clone(b[begin+frameHead:])
		b = append(b[:begin+frameHead], j.seal(plain, at)...)
	}
	j.scratch = b
	head := b[begin : begin+frameHead]
	contents := end - at - frameHead - int64(size)
	binary.BigEndian.PutUint32(head, frameMagic)
	binary.BigEndian.PutUint32(head[4:], uint32(at-j.start))
	binary.BigEndian.PutUint32(head[8:], uint32(size))
	binary.BigEndian.PutUint32(head[12:], uint32(contents))
	j.pieces[first] = b[begin:]
	sum := j.sum(head, at)
	sum = crc32.Update(sum, castagnoli, b[begin+frameHead:])
	for _, p := range j.pieces[first+1:] {
		sum = crc32.Update(sum, castagnoli, p)
	}
	binary.BigEndian.PutUint32(head[16:], sum)
	return end
}

// sum begins the checksum of a frame: with its place and its lengths.
func (j *journal) sum(head []byte, at int64) uint32 {
	var place [8]byte
	binary.BigEndian.PutUint64(place[:], uint64(at))
	return crc32.Update(crc32.Update(j.seed, castagnoli, place[:]), castagnoli, head[4:16])
}

// seal encrypts what is to lie at at. No place is written to twice, so no nonce is used twice: after a failed commit
// nothing more is written.
func (j *journal) seal(b []byte, at int64) []byte {
	if j.aead == nil {
		return b
	}
	return j.aead.Seal(nil, frameNonce(uint64(at), false), b, nil)
}

func (j *journal) open(b []byte, at int64) ([]byte, error) {
	if j.aead == nil {
		return b, nil
	}
	plain, err := j.aead.Open(b[:0], frameNonce(uint64(at), false), b, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %s at %d: %w", ErrDamaged, j.f.Name(), at, err)
	}
	return plain, nil
}

// content reads a message's content.
func (j *journal) content(m *message) ([]byte, error) {
	if m.size < 0 || m.size > inlineMax || m.at < 0 {
		return nil, fmt.Errorf("%w: content of %d octets at %d of a journal", ErrDamaged, m.size, m.at)
	}
	n := m.size
	if j.aead != nil {
		n += int64(j.aead.Overhead())
	}
	b := make([]byte, n)
	if _, err := j.f.ReadAt(b, m.at); err == io.EOF {
		return nil, fmt.Errorf("%w: %s ends before %d", ErrDamaged, j.f.Name(), m.at+n)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return j.open(b, m.at)
}

// finish gives back the room that was not used, once nothing more is written.
func (j *journal) finish() error {
	if j.limit == 0 {
		return nil
	}
	return j.f.Truncate(j.end.Load())
}

// entriesSize is what appendEntries will append.
func entriesSize(entries []entry) int {
	n := 0
	for i := range entries {
		e := &entries[i]
		n += uvarintSize(len(e.key)) + len(e.key) + uvarintSize(len(e.value)+1) + len(e.value)
	}
	return n
}

func uvarintSize(n int) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

// appendEntries writes keys and values with their lengths before them; a value's is one more, and 0 if the key is
// deleted.
func appendEntries(b []byte, entries []entry) []byte {
	for i := range entries {
		e := &entries[i]
		b = binary.AppendUvarint(b, uint64(len(e.key)))
		b = append(b, e.key...)
		if e.value == nil {
			b = append(b, 0)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(e.value)+1))
		b = append(b, e.value...)
	}
	return b
}

func readEntries(b []byte) ([]entry, error) {
	d := dec{b: b}
	var entries []entry
	for len(d.b) > 0 {
		e := entry{key: d.bytes()}
		if n := d.uint(); n > uint64(len(d.b))+1 {
			d.fail(errShort)
		} else if n > 0 {
			e.value = d.b[: n-1 : n-1]
			d.b = d.b[n-1:]
		}
		if d.err != nil || len(e.key) == 0 {
			return nil, fmt.Errorf("%w: entries of a frame: %w", ErrDamaged, errors.Join(d.err, errShort))
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// message gives the message whose commit record an entry is.
func (e *entry) message() (id mta.ID, ok bool) {
	if len(e.key) == 0 || e.key[0] != 'm' || len(e.value) < 1+len(id) {
		return id, false
	}
	copy(id[:], e.value[1:])
	return id, true
}

// journalReport is what was found behind a place in a journal.
type journalReport struct {
	frames   int      // that are whole
	groups   int      // that these belong to
	last     int64    // where the last group begins
	end      int64    // behind the last frame
	lost     int      // places that can't be read and lie before a later commit
	held     []mta.ID // messages there whose content alone is damaged
	missing  []mta.ID // others, as far as these places tell
	torn     bool     // the last commit was not finished: no 250 was said
	searched int64    // octets that were summed to find frames behind the first place that can't be read
}

// journalFrame is one frame as it lies in the journal.
type journalFrame struct {
	group  int64 // where its group begins
	length int64
}

// readFrame reads the frame at the beginning of b, which lies at at. In a search, s is of what ends with b.
func (j *journal) readFrame(b []byte, at int64, s *sums) (f journalFrame, entries []entry, ok bool) {
	if len(b) < frameHead || binary.BigEndian.Uint32(b) != frameMagic {
		return f, nil, false
	}
	size, contents := int64(binary.BigEndian.Uint32(b[8:])), int64(binary.BigEndian.Uint32(b[12:]))
	f = journalFrame{group: at - int64(binary.BigEndian.Uint32(b[4:])), length: frameHead + size + contents}
	if f.length > int64(len(b)) {
		return f, nil, false
	}
	sum := j.sum(b, at)
	if s == nil {
		sum = crc32.Update(sum, castagnoli, b[frameHead:f.length])
	} else {
		begin := len(s.b) - len(b)
		sum = s.update(sum, begin+frameHead, begin+int(f.length))
	}
	if sum != binary.BigEndian.Uint32(b[16:]) {
		return f, nil, false
	}
	plain, err := j.open(bytes.Clone(b[frameHead:frameHead+size]), at)
	if err == nil {
		entries, err = readEntries(plain)
	}
	return f, entries, err == nil
}

// read calls f for each whole frame from a place on, and looks behind what can't be read for more.
func (j *journal) read(from int64, f func(entries []entry) error) (journalReport, error) {
	fi, err := j.f.Stat()
	if err != nil || fi.Size() <= from {
		return journalReport{end: from}, err
	}
	b := make([]byte, fi.Size()-from)
	if _, err := io.ReadFull(io.NewSectionReader(j.f, from, int64(len(b))), b); err != nil {
		return journalReport{end: from}, err
	}
	return j.scan(b, from, f)
}

// scan reads b, which lies at from. What can't be read is damage once a frame of a later group lies behind it: that was
// begun when the damaged one was safe. If there is none, its group may never have been finished. What senders wrote may
// look like the heads of frames: from the first place that can't be read on, that costs little for each.
func (j *journal) scan(b []byte, from int64, f func(entries []entry) error) (journalReport, error) {
	r := journalReport{end: from}
	magic := binary.BigEndian.AppendUint32(nil, frameMagic)
	var search *sums   // of all from the first place on that can't be read
	bad := int64(-1)   // where something begins that can't be read
	var doubts []piece // what can't be read, in the last group that was seen
	last := int64(-1)  // where that group begins
	for at := from; at-from < int64(len(b)); {
		rest := b[at-from:]
		frame, entries, ok := j.readFrame(rest, at, search)
		if !ok {
			if bad < 0 && !isZero(rest) {
				bad = at
			}
			next := bytes.Index(rest[1:], magic)
			if next < 0 {
				break
			}
			if search == nil {
				search = newSums(rest)
			}
			at += int64(next) + 1
			continue
		}
		if bad >= 0 {
			doubts = append(doubts, piece{b[bad-from : at-from], bad})
		}
		if held := r.lose(j, doubts, frame.group); len(held) > 0 {
			if err := f(held); err != nil {
				return r, err
			}
		}
		doubts = slices.DeleteFunc(doubts, func(p piece) bool { return p.at < frame.group })
		if frame.group > last {
			last = frame.group
			r.groups++
		}
		bad = -1
		at += frame.length
		r.frames, r.last, r.end = r.frames+1, frame.group, at
		if err := f(entries); err != nil {
			return r, err
		}
	}
	r.torn = bad >= 0 || len(doubts) > 0
	if search != nil {
		r.searched = search.summed
	}
	return r, nil
}

// secure brings what was read to stable storage, before anything is done because of it: a process that was killed may have
// written the last group and not synced it. It is written once more, for after a sync that failed the system takes pages
// for clean that are not on the disk. What lies before it was safe when it was begun.
func (j *journal) secure(r journalReport, sync func(*os.File) error) error {
	if r.frames == 0 {
		return nil
	}
	f, err := os.OpenFile(j.f.Name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	from := max(r.last, journalHead)
	b := make([]byte, r.end-from)
	if _, err := f.ReadAt(b, from); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, from); err != nil {
		return err
	}
	if err := sync(f); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
