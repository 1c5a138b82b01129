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
		for len(p.b) >= frameHead {
			n := j.salvage(p, r, &entries)
			if n >= int64(len(p.b)) || binary.BigEndian.Uint32(p.b[n:]) != frameMagic {
				break
			}
			p = piece{p.b[n:], p.at + n}
		}
	}
	return entries
}

// salvage looks at a frame that does not have its checksum, and returns its length by its own word. A message whose
// content does not have its checksum either is damaged there and nowhere else: its record stands, and says that it is
// damaged, so that it is held and never delivered. Where the content is right, or elsewhere, it is the record that can't
// be trusted: then the message is named.
func (j *journal) salvage(p piece, r *journalReport, entries *[]entry) int64 {
	size := min(int64(binary.BigEndian.Uint32(p.b[8:])), int64(len(p.b)-frameHead))
	length := min(frameHead+size+int64(binary.BigEndian.Uint32(p.b[12:])), int64(len(p.b)))
	plain, err := j.open(bytes.Clone(p.b[frameHead:frameHead+size]), p.at)
	if err != nil {
		return length
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
		if !j.contentAlone(m, p, size) {
			r.missing = append(r.missing, m.env.ID)
			continue
		}
		state := begin(m.env)
		state.damaged = true
		state.rev++
		*entries = append(*entries, e, entry{key: progressKey(seqOf(e.key)), value: state.encode()})
		r.held = append(r.held, m.env.ID)
	}
	return length
}

// contentAlone reports whether the content of a message lies where it should in the frame, and is damaged.
func (j *journal) contentAlone(m *message, p piece, size int64) bool {
	from, to := m.at-p.at, m.at-p.at+m.size
	if j.aead != nil {
		to += int64(j.aead.Overhead())
	}
	if m.file != 0 || m.size < 0 || m.size > inlineMax || from < frameHead+size || to > int64(len(p.b)) {
		return false
	}
	content, err := j.open(bytes.Clone(p.b[from:to]), m.at)
	return err != nil || verify(content, m) != nil
}
