package spool

import (
	"bytes"
	"encoding/binary"
)

// piece is a part of a journal that can't be read.
type piece struct {
	b  []byte
	at int64 // where it lies
}

// lose takes the pieces that lie before a group: they were promised when it was begun. It gives the entries of those
// messages in them that can be held.
func (r *journalReport) lose(j *journal, pieces []piece, group int64) (entries []entry) {
	for _, p := range pieces {
		if p.at >= group {
			continue
		}
		r.lost++
		frames, whole := p.frames()
		for _, f := range frames {
			entries = append(entries, j.salvage(f, whole, r)...)
		}
	}
	return entries
}

// frames divides a piece by what the heads in it say. It is whole if they fit: then no length in them is damaged, and
// nothing that a sender wrote is taken for entries.
func (p piece) frames() (list []piece, whole bool) {
	for len(p.b) >= frameHead && binary.BigEndian.Uint32(p.b) == frameMagic {
		n := frameHead + int64(binary.BigEndian.Uint32(p.b[8:])) + int64(binary.BigEndian.Uint32(p.b[12:]))
		if n > int64(len(p.b)) {
			return append(list, p), false
		}
		list = append(list, piece{p.b[:n], p.at})
		p = piece{p.b[n:], p.at + n}
	}
	return list, len(p.b) == 0
}

// salvage looks at a frame that does not have its checksum. A message whose content does not have its checksum either is
// damaged there and nowhere else: its record stands, and a state that says so, with which it is held and never delivered.
// Where the content is right, or elsewhere, it is the record that can't be trusted: then the message is named.
func (j *journal) salvage(f piece, whole bool, r *journalReport) (entries []entry) {
	size := min(int64(binary.BigEndian.Uint32(f.b[8:])), int64(len(f.b)-frameHead))
	plain, err := j.open(bytes.Clone(f.b[frameHead:frameHead+size]), f.at)
	if err != nil {
		return nil
	}
	for d := (dec{b: plain}); len(d.b) > 0; {
		e := entry{key: d.bytes()}
		n := d.uint()
		if d.err != nil || n == 0 || n-1 > uint64(len(d.b)) {
			break
		}
		e.value, d.b = d.b[:n-1], d.b[n-1:]
		m, err := decodeMessage(e.value)
		if len(e.key) != len(messageKey(0)) || e.key[0] != 'm' || err != nil {
			continue
		}
		if !whole || !j.contentAlone(m, f, size) {
			r.missing = append(r.missing, m.env.ID)
			continue
		}
		state := begin(m.env)
		state.damaged = true
		state.rev++
		entries = append(entries, e, entry{key: progressKey(seqOf(e.key)), value: state.encode()})
		r.held = append(r.held, m.env.ID)
	}
	return entries
}

// contentAlone reports whether the content of a message lies where it should in the frame, and is damaged.
func (j *journal) contentAlone(m *message, f piece, size int64) bool {
	from, to := m.at-f.at, m.at-f.at+m.size
	if j.aead != nil {
		to += int64(j.aead.Overhead())
	}
	if m.file != 0 || m.size < 0 || m.size > inlineMax || from < frameHead+size || from > int64(len(f.b)) || to > int64(len(f.b)) {
		return false
	}
	content, err := j.open(bytes.Clone(f.b[from:to]), m.at)
	return err != nil || verify(content, m) != nil
}
