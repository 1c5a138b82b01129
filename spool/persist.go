package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"understudy/internal/mta"
)

// persist implements backing. A message's progress goes to its own generation. Where that one can't be written to, and
// together with reports, it goes to the active generation as an override: the later revision is the truth.
func (s *Store) persist(changes []*change) {
	groups := make(map[uint32][]*change)
	for _, c := range changes {
		if len(c.reports) > 0 {
			c.err = s.persistReports(c)
		}
		if c.err == nil {
			groups[c.at.gen] = append(groups[c.at.gen], c)
		}
	}
	var wg sync.WaitGroup
	for num, group := range groups {
		if len(groups) == 1 {
			s.persistGroup(num, group)
			return
		}
		wg.Go(func() { s.persistGroup(num, group) })
	}
	wg.Wait()
}

// persistReports spools reports and the progress that they report in one commit.
func (s *Store) persistReports(c *change) error {
	for i := range c.reports {
		if n := len(c.reports[i].Content); n > inlineMax {
			return fmt.Errorf("report of %d octets is larger than %d", n, inlineMax)
		}
	}
	n := uint32(len(c.reports))
	at, err := s.add(func(seq uint32) []entry {
		entries := []entry{{key: overrideKey(c.at), value: encodeOverride(c.id, c.p)}}
		for i := range c.reports {
			r := &c.reports[i]
			m := message{size: int64(len(r.Content)), sum: checksum(r.Content), env: r.Envelope}
			num := seq + uint32(i)
			entries = append(entries, entry{messageKey(num), m.encode(), notNil(r.Content)})
		}
		return entries
	}, n, 0)
	if err != nil {
		return err
	}
	c.override = at.gen
	for i := range n {
		c.repAt = append(c.repAt, loc{at.gen, at.seq + i})
	}
	return nil
}

// notNil keeps empty content from being taken for none.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// entry is what a change writes to the message's own generation.
func (c *change) entry() entry {
	if c.p == nil {
		return entry{key: messageKey(c.at.seq)}
	}
	return entry{key: progressKey(c.at.seq), value: c.p.encode()}
}

// persistGroup writes the changes of one generation, in steps that fit into a commit.
func (s *Store) persistGroup(num uint32, changes []*change) {
	g, ok := s.generation(num)
	for len(changes) > 0 {
		var entries []entry
		cost, n := int64(0), 0
		for _, c := range changes {
			e := c.entry()
			cost += int64(len(e.key)+len(e.value)) + entryCost
			if n > 0 && cost > stepCost {
				break
			}
			entries = append(entries, e)
			n++
		}
		err := errMoved
		if ok {
			err = s.writeTo(g, entries, ends(changes[:n]))
		}
		if err != nil {
			s.overrideGroup(changes[:n], err)
		} else {
			s.wrote(g, changes[:n])
		}
		changes = changes[n:]
	}
}

// ends counts the changes that delete a commit record.
func ends(changes []*change) (n int64) {
	for _, c := range changes {
		if c.p == nil {
			n++
		}
	}
	return n
}

// stepCost fits into a commit of the smallest database.
const stepCost = smallMemtable * batchPercent / 100 / 2

// writeTo writes to a generation, whose database is opened anew if its log is full. ended commit records are deleted by
// it.
func (s *Store) writeTo(g *generation, entries []entry, ended int64) error {
	for {
		d, err := g.use(s)
		if err != nil {
			return err
		}
		if err = d.write(entries); err == nil {
			g.records.Add(-ended) // while it can't be closed: the count goes into the mark
		}
		g.release()
		if errors.Is(err, ErrUnknown) || errors.Is(err, errPoisoned) {
			s.leaveBehind(g)
		}
		if !errors.Is(err, errFull) {
			return err
		}
		if s.isActive(g) {
			if _, err := s.roll(g); err != nil {
				return err
			}
		}
		g.renew(d)
	}
}

func (s *Store) isActive(g *generation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active == g
}

// wrote follows a change of the message's own generation.
func (s *Store) wrote(g *generation, changes []*change) {
	s.mu.Lock()
	for _, c := range changes {
		delete(s.overrides, c.at)
	}
	s.mu.Unlock()
	for _, c := range changes {
		if c.p == nil {
			s.ended(g, c)
		}
	}
}

// ended follows a message's end, wherever that was written.
func (s *Store) ended(g *generation, c *change) {
	if c.msg != nil && c.msg.file != 0 {
		s.removeBody(c.msg)
	}
	if g != nil && g.live.Add(-1) == 0 {
		s.wake()
	}
}

// overrideGroup writes changes to the active generation because their own can't be written to.
func (s *Store) overrideGroup(changes []*change, cause error) {
	for _, c := range changes {
		if g, ok := s.generation(c.override); ok { // it is there already, with what else it came with
			g.pin(c.at.gen)
		} else if _, err := s.add(func(uint32) []entry { return []entry{{key: overrideKey(c.at), value: encodeOverride(c.id, c.p)}} }, 0, c.at.gen); err != nil {
			c.err = fmt.Errorf("%w; %w", cause, err)
			continue
		}
		s.mu.Lock()
		if c.p == nil {
			delete(s.overrides, c.at)
		} else {
			s.overrides[c.at] = c.p.encode()
		}
		own := s.gens[c.at.gen]
		s.mu.Unlock()
		if c.p == nil {
			s.ended(own, c)
		}
	}
	s.log.Warn("progress stored beside its generation", slog.Int("messages", len(changes)), slog.Any("err", cause))
}

// override is the progress of a message in another generation; without progress the message there is ended.
type override struct {
	id       mta.ID
	at       loc
	by       uint32 // the generation that it was read from
	progress []byte // nil: ended
}

const overrideVersion = 1

func encodeOverride(id mta.ID, p *progress) []byte {
	e := make(enc, 0, 64)
	e.byte(overrideVersion)
	e = append(e, id[:]...)
	if p == nil {
		e.byte(0)
		return e
	}
	e.byte(1)
	return append(e, p.encode()...)
}

func decodeOverride(b []byte) (override, error) {
	d := dec{b: b}
	d.version(overrideVersion)
	var o override
	if len(d.b) < len(o.id) {
		d.fail(errShort)
	}
	d.b = d.b[copy(o.id[:], d.b):]
	if d.byte() == 1 {
		o.progress = d.b
	}
	if d.err != nil {
		return override{}, fmt.Errorf("override record: %w", d.err)
	}
	return o, nil
}
