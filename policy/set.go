package policy

import (
	"hash/maphash"
	"iter"
	"regexp"
	"strings"
)

// set holds the folded local parts of one domain. A million of them cost about 28 octets each and no pointer, so the
// garbage collector never looks inside.
type set struct {
	at       int64  // when it was read, in Unix nanoseconds
	domain   string // what patterns see behind the @
	patterns []*regexp.Regexp

	all   bool // every local part is a member
	n     int
	seed  maphash.Seed
	slots []uint32 // open addressing: place in arena plus one, 0 is free; at most two thirds are taken
	arena []byte   // each member: one octet of length, then the member
}

// newSet makes a set of the members in arena, in which a member may stand several times.
func newSet(arena []byte, n int, all bool) *set {
	size := 1
	for size*2 < n*3 {
		size *= 2
	}
	s := &set{all: all, seed: maphash.MakeSeed(), slots: make([]uint32, size), arena: arena}
	for at := 0; at < len(arena); at += 1 + int(arena[at]) {
		slot, found := s.find(string(s.member(at)))
		if !found {
			s.slots[slot] = uint32(at) + 1
			s.n++
		}
	}
	return s
}

func (s *set) member(at int) []byte { return s.arena[at+1 : at+1+int(s.arena[at])] }

// members are all local parts, each once.
func (s *set) members() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for at := 0; at < len(s.arena); at += 1 + int(s.arena[at]) {
			if slot, _ := s.find(string(s.member(at))); s.slots[slot] != uint32(at)+1 {
				continue // said before
			}
			if !yield(s.member(at)) {
				return
			}
		}
	}
}

// has tells whether a folded local part is a member, by its name, by a pattern, or because all are.
func (s *set) has(local string) bool { return s.all || s.names(local) || s.matches(local) }

// names tells whether a folded local part is a member by its own name.
func (s *set) names(local string) bool {
	if s.n == 0 {
		return false
	}
	_, found := s.find(local)
	return found
}

func (s *set) matches(local string) bool {
	if len(s.patterns) == 0 {
		return false
	}
	address := strings.Join([]string{local, s.domain}, "@")
	for _, re := range s.patterns {
		if re.MatchString(address) {
			return true
		}
	}
	return false
}

// find gives the slot of a member, or the free slot where it belongs.
func (s *set) find(local string) (slot int, found bool) {
	mask := uint64(len(s.slots) - 1)
	for i := maphash.String(s.seed, local) & mask; ; i = (i + 1) & mask {
		at := s.slots[i]
		if at == 0 {
			return int(i), false
		}
		if string(s.member(int(at-1))) == local {
			return int(i), true
		}
	}
}
