package policy

import "hash/maphash"

// set holds the folded local parts of one domain. A million of them cost about 28 octets each and no pointer, so the
// garbage collector never looks inside.
type set struct {
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

// has tells whether a folded local part is a member.
func (s *set) has(local string) bool { return s.all || s.names(local) }

// names tells whether a folded local part is a member by its own name.
func (s *set) names(local string) bool {
	if s.n == 0 {
		return false
	}
	_, found := s.find(local)
	return found
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
