package policy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"time"
)

// content is what a source said of the domains that it serves. It is never changed once it was made.
type content struct {
	serves []string        // the domains it was read for, sorted
	sets   map[string]*set // those of them that it has recipients of
	tag    tag
	at     time.Time // when it was fetched
	digest [sha256.Size]byte

	foreign, odd int // as of list
}

// tag is by what a source tells that nothing has changed since.
type tag struct {
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"` // Last-Modified, or a file's time, size and inode
}

// newContent indexes what was read. Without a single recipient it is the output of something that failed.
func newContent(l *list, t tag, now time.Time) (*content, error) {
	if len(l.faults) > 0 {
		return nil, l.faults
	}
	c := &content{serves: slices.Sorted(maps.Keys(l.members)), sets: l.index(), tag: t, at: now, foreign: l.foreign, odd: l.odd}
	if len(c.sets) == 0 {
		return nil, fmt.Errorf("names no recipient at %s", someOf(c.serves))
	}
	h := sha256.New()
	for _, domain := range c.serves {
		digestSet(h, domain, c.sets[domain])
	}
	h.Sum(c.digest[:0])
	return c, nil
}

// readContent reads a list as text.
func readContent(ctx context.Context, r io.Reader, name string, j job, t tag) (*content, error) {
	l := newList(name, j.serves)
	l.parse(ctx, r, form{j.cfg.Format, j.cfg.Column, j.cfg.Separator})
	return newContent(l, t, time.Now())
}

// digestSet tells two sets apart. The same list in another order may be another set to it; that costs only work.
func digestSet(h hash.Hash, domain string, s *set) {
	word := func(b []byte) {
		h.Write(binary.AppendUvarint(nil, uint64(len(b))))
		h.Write(b)
	}
	word([]byte(domain))
	if s == nil {
		return
	}
	fmt.Fprintf(h, "%v %d ", s.all, s.n)
	h.Write(s.arena)
	for _, re := range s.patterns {
		word([]byte(re.String()))
	}
}

func someOf(domains []string) string {
	switch len(domains) {
	case 0:
		return "no domain: none names this source"
	case 1:
		return domains[0]
	}
	return fmt.Sprintf("any of the %d domains that it serves", len(domains))
}

// Shrink is a loss of recipients that waits for an operator's word.
type Shrink struct {
	Domain string `json:"domain"`
	Had    int    `json:"had"`
	Has    int    `json:"has"`
}

// minShrink is how many people may leave at once without anybody being asked, whatever the percentage says of a small
// company.
const minShrink = 2

// shrunk lists the domains that would lose more than so many percent of their recipients, or all of them.
func shrunk(old, new *content, percent int) []Shrink {
	var all []Shrink
	for _, domain := range new.serves {
		had, has := old.count(domain), new.count(domain)
		lost := had - has
		if had == 0 || new.takesAll(domain) || lost <= 0 || has > 0 && (lost <= minShrink || lost*100 <= had*percent) {
			continue
		}
		all = append(all, Shrink{domain, had, has})
	}
	return all
}

// count is how many entries a domain has.
func (c *content) count(domain string) int {
	s := c.sets[domain]
	if s == nil {
		return 0
	}
	n := s.n + len(s.patterns)
	if s.all {
		n++
	}
	return n
}

func (c *content) takesAll(domain string) bool { return c.sets[domain] != nil && c.sets[domain].all }

// total is how many entries all domains have.
func (c *content) total() int {
	n := 0
	for domain := range c.sets {
		n += c.count(domain)
	}
	return n
}

// holding is c with the old sets of those domains whose loss waits for a word.
func (c *content) holding(old *content, held []Shrink) *content {
	if len(held) == 0 {
		return c
	}
	mixed := *c
	mixed.sets = maps.Clone(c.sets)
	mixed.tag = tag{} // what is in force is not what the source would call unchanged
	mixed.digest = [sha256.Size]byte{}
	for _, h := range held {
		mixed.sets[h.Domain] = old.sets[h.Domain]
	}
	return &mixed
}
