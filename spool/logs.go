package spool

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"understudy/internal/mta"
)

// After a crash Badger replays its log and cuts it off at the first entry that it can't read, without a word. So the
// logs are read here first, copied aside, and what lies behind the cut is told.

// The layout of a log, from Badger's source: a head, then entries of header, key, value and CRC-32C; the entries of a
// transaction are followed by one that ends it. Behind the last there are zeros.
const (
	logHead     = 20   // key ID, initial vector
	metaDelete  = 0x01 // the key is deleted
	metaTxn     = 0x40 // part of a transaction
	metaEnd     = 0x80 // its end
	stampSize   = 8    // behind each key
	endKey      = "!badger!txn"
	maxLogKey   = 64
	maxLogValue = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// logReport is what a log holds.
type logReport struct {
	name      string
	commits   int      // that will be replayed
	ids       []mta.ID // the messages that came in them
	end       int64    // where replay ends
	size      int64    // up to the last octet that is not zero
	lost      int      // commits behind the end
	missing   []mta.ID
	pending   []mta.ID // messages of a commit that was not finished: no 250 was said
	doubtful  bool     // the last commit is damaged, not merely unfinished
	monstrous bool     // the entry at the end would make Badger ask for gigabytes
}

// logEntry is one entry as it lies in the log.
type logEntry struct {
	meta       byte
	key, value []byte
	length     int
}

// readEntry reads an entry that is whole and has the right checksum.
func readEntry(b []byte) (logEntry, bool) {
	if len(b) < 5 || b[1] != 0 {
		return logEntry{}, false
	}
	e := logEntry{meta: b[0]}
	at := 2
	var fields [3]uint64
	for i := range fields {
		v, n := binary.Uvarint(b[at:])
		if n <= 0 {
			return logEntry{}, false
		}
		fields[i] = v
		at += n
	}
	klen, vlen := fields[0], fields[1]
	if klen == 0 || klen > maxLogKey || vlen > maxLogValue || uint64(len(b)-at) < klen+vlen+crc32.Size {
		return logEntry{}, false
	}
	e.key = b[at : at+int(klen)]
	at += int(klen)
	e.value = b[at : at+int(vlen)]
	at += int(vlen)
	if binary.BigEndian.Uint32(b[at:]) != crc32.Checksum(b[:at], castagnoli) {
		return logEntry{}, false
	}
	e.length = at + crc32.Size
	return e, true
}

// message gives the message whose commit record an entry is.
func (e *logEntry) message() (mta.ID, bool) {
	if e.meta&metaTxn == 0 || e.meta&metaDelete != 0 || len(e.key) != 5+stampSize || e.key[0] != 'm' {
		return mta.ID{}, false
	}
	m, err := decodeMessage(e.value)
	if err != nil {
		return mta.ID{}, false
	}
	return m.env.ID, true
}

// logFile is a log as it lies on the disk. Keys and values in it may be encrypted, under its initial vector and their
// place.
type logFile struct {
	b     []byte
	block cipher.Block // nil: in clear, or nobody can tell
}

// openLog finds the key of a log in the registry of its folder.
func openLog(dir string, b, key []byte) (logFile, error) {
	l := logFile{b: b}
	if len(key) == 0 || len(b) < logHead {
		return l, nil
	}
	keys, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: dir, ReadOnly: true, EncryptionKey: key, EncryptionKeyRotationDuration: keyRotation})
	if err != nil {
		return l, err
	}
	defer keys.Close()
	data, err := keys.DataKey(binary.BigEndian.Uint64(b))
	if err != nil || data == nil {
		return l, err
	}
	l.block, err = aes.NewCipher(data.Data)
	return l, err
}

// entry reads the entry at at. It makes sense if it is one of ours: under a wrong key or vector none is.
func (l logFile) entry(at int) (e logEntry, sense, ok bool) {
	e, ok = readEntry(l.b[at:])
	if !ok || l.block == nil {
		return e, ok, ok
	}
	plain := l.decrypt(at, slices.Concat(e.key, e.value))
	e.key, e.value = plain[:len(e.key)], plain[len(e.key):]
	return e, isOurs(e.key), true
}

func (l logFile) decrypt(at int, b []byte) []byte {
	if l.block == nil {
		return b
	}
	iv := binary.BigEndian.AppendUint32(slices.Clone(l.b[8:logHead]), uint32(at))
	cipher.NewCTR(l.block, iv).XORKeyStream(b, b)
	return b
}

// isOurs reports a key as it lies in a log: one of a generation's, or of Badger's that ends a transaction.
func isOurs(key []byte) bool {
	n := len(key) - stampSize
	if n < 1 {
		return false
	}
	switch key[0] {
	case 'v':
		return n == 1
	case 'b':
		return n == 5 || n == 9
	case 'm', 'r':
		return n == 5
	case 'o':
		return n == 9
	}
	return string(key[:n]) == endKey
}

// ends reports whether the end of a transaction lies behind at, be it damaged.
func (l logFile) ends(at int) bool {
	const longest = 2 + 3*binary.MaxVarintLen32 + len(endKey)
	for ; at+longest < len(l.b); at++ {
		if l.b[at] != metaEnd || l.b[at+1] != 0 {
			continue
		}
		head := 2
		for range 3 {
			_, n := binary.Uvarint(l.b[at+head:])
			head += max(n, 0)
		}
		if at+head+len(endKey) <= len(l.b) && string(l.decrypt(at, slices.Clone(l.b[at+head:at+head+len(endKey)]))) == endKey {
			return true
		}
	}
	return false
}

// read says what a replay will find, and what it will not.
func (l logFile) read(name string) logReport {
	b := l.b
	r := logReport{name: name, end: logHead}
	size := len(bytes.TrimRight(b, "\x00"))
	if r.size = int64(size); size < logHead {
		return r
	}
	at := logHead
	var open []mta.ID
	for at < size {
		e, sense, _ := l.entry(at)
		if !sense {
			break
		}
		at += e.length
		if id, ok := e.message(); ok {
			open = append(open, id)
		}
		if e.meta&metaEnd != 0 {
			r.commits++
			r.end = int64(at)
			r.ids = append(r.ids, open...)
			open = nil
		}
	}
	r.pending = open
	r.size = max(r.size, int64(at)) // a checksum may end in zeros
	if at < size {
		r.monstrous = monstrous(b[at:size])
		r.searchBehind(l, at)
		r.doubtful = r.lost == 0 && (bytes.Contains(b[at:size], []byte(endKey)) || l.ends(at))
	}
	return r
}

// searchBehind looks for whole commits from at on, where something can't be read. What is whole and makes no sense was
// written under another vector than the one at the head.
func (r *logReport) searchBehind(l logFile, at int) {
	var open []mta.ID
	for at < len(l.b) {
		if m := l.b[at]; m != metaTxn && m != metaTxn|metaDelete && m != metaEnd {
			at++
			continue
		}
		e, sense, ok := l.entry(at)
		if !ok {
			at++
			continue
		}
		at += e.length
		if id, ok := e.message(); ok && sense {
			open = append(open, id)
		}
		if e.meta&metaEnd != 0 {
			r.lost++
			r.missing = append(append(r.missing, r.pending...), open...)
			r.pending, open = nil, nil
		}
	}
}

// monstrous tells a damaged header with lengths that Badger would allocate unchecked.
func monstrous(b []byte) bool {
	if len(b) < 3 {
		return false
	}
	_, n := binary.Uvarint(b[2:])
	if n <= 0 {
		return false
	}
	vlen, m := binary.Uvarint(b[2+n:])
	return m > 0 && uint64(uint32(vlen)) > maxLogValue
}

// saveLogs copies the logs of a generation that was not closed aside, tells what replaying them will miss, and reports
// whether the copies should be kept. Beside the mark of a close they are not judged: that of a fresh generation was never
// synced, and may have been written out as a table already. What the mark counted is held against what is there.
func (s *Store) saveLogs(g *generation, aside string, marked bool) (keep bool, err error) {
	logs, err := filepath.Glob(filepath.Join(g.dir, "*.mem"))
	if err != nil {
		return false, err
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			return true, err
		}
		l, err := openLog(g.dir, b, g.key)
		if err != nil {
			return true, err
		}
		r := l.read(filepath.Base(path))
		err = s.copyLog(filepath.Join(aside, r.name), b[:r.size])
		amiss := !marked && s.tellLog(g, aside, r)
		switch {
		case err != nil && amiss: // Badger would cut off what may still be good
			return true, fmt.Errorf("%w: %s is damaged and can't be copied aside: %w", errNotBadger, path, err)
		case err != nil:
			s.log.Warn("log not copied aside before it is replayed", slog.String("file", path), slog.Any("err", err))
		case r.monstrous:
			if err := os.Truncate(path, r.end); err != nil { // where Badger would cut it too
				return true, err
			}
		}
		keep = keep || amiss
	}
	return keep, nil
}

func (s *Store) copyLog(path string, b []byte) error {
	done, err := s.space.need(int64(len(b)))
	if err != nil {
		return err
	}
	defer done()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// tellLog reports whether something is amiss with a log.
func (s *Store) tellLog(g *generation, dir string, r logReport) bool {
	attrs := []any{slog.String("dir", g.dir), slog.String("file", r.name), slog.Int("commits", r.commits), slog.Int64("end", r.end)}
	if r.lost > 0 {
		s.log.Error("log is damaged: commits behind the damage are not replayed", append(attrs, slog.Int("lost", r.lost),
			slog.String("missing", joinIDs(r.missing)), slog.String("copy", dir))...)
		s.damagedGeneration(g, fmt.Errorf("%w: its log, before %d commits", ErrDamaged, r.lost))
		return true
	}
	if r.doubtful {
		s.tellDoubt(g, r.pending, dir, attrs)
		return true
	}
	if len(r.pending) > 0 || r.size > r.end {
		s.log.Warn("log ends in a commit that was not finished", append(attrs, slog.Int64("size", r.size), slog.String("unfinished", joinIDs(r.pending)))...)
	}
	return r.monstrous
}

// tellDoubt tells of a commit at the end of a log that is damaged rather than unfinished.
func (s *Store) tellDoubt(g *generation, missing []mta.ID, aside string, attrs []any) {
	s.stats.damaged.Inc()
	s.found.mu.Lock()
	s.amiss = append(s.amiss, Damage{Dir: g.dir, Text: "the last commit of its log is damaged; copy in " + aside})
	s.found.mu.Unlock()
	s.log.Error("the last commit of a log is damaged: if it was promised, it is lost", append(attrs,
		slog.String("missing", joinIDs(missing)), slog.String("copy", aside))...)
}

// asideKeep is how long copies wait for somebody to look at them.
const asideKeep = 30 * 24 * time.Hour

// tidyAside removes copies that nobody wanted for long.
func (s *Store) tidyAside() {
	list, err := os.ReadDir(filepath.Join(s.dir, asideDir))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	for _, e := range list {
		if fi, err := e.Info(); err != nil || time.Since(fi.ModTime()) < asideKeep {
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, asideDir, e.Name())))
	}
	if err != nil {
		s.log.Warn("old copies not removed", slog.Any("err", err))
	}
}

// joinIDs lists IDs for the log, not too many.
func joinIDs(ids []mta.ID) string {
	const most = 100
	var list []string
	for _, id := range ids[:min(len(ids), most)] {
		list = append(list, id.String())
	}
	if len(ids) > most {
		list = append(list, fmt.Sprintf("and %d more", len(ids)-most))
	}
	return strings.Join(list, " ")
}
