package forwarder

import "slices"

// shelf holds the jobs of a route that are ready for the wire, by the key of the session that they need, each key's
// oldest first. It takes no lock: route.mu guards it.
type shelf struct {
	groups map[string][]*job
	keys   []string // of groups, the one that waits longest first
	n      int
}

// put adds a job; first puts it before the others, for mail that shall not wait behind a backlog.
func (s *shelf) put(j *job, first bool) {
	if s.groups == nil {
		s.groups = make(map[string][]*job)
	}
	g, known := s.groups[j.key]
	switch {
	case first:
		s.groups[j.key] = slices.Insert(g, 0, j)
		if known {
			s.keys = without(s.keys, j.key)
		}
		s.keys = slices.Insert(s.keys, 0, j.key)
	default:
		s.groups[j.key] = append(g, j)
		if !known {
			s.keys = append(s.keys, j.key)
		}
	}
	s.n++
}

// take gives the first of a key, nil if there is none.
func (s *shelf) take(key string) *job {
	g := s.groups[key]
	if len(g) == 0 {
		return nil
	}
	j := g[0]
	g[0] = nil
	s.n--
	if len(g) > 1 {
		s.groups[key] = g[1:]
		return j
	}
	delete(s.groups, key)
	s.keys = without(s.keys, key)
	return j
}

// later puts a key behind the others.
func (s *shelf) later(key string) {
	if _, known := s.groups[key]; known {
		s.keys = append(without(s.keys, key), key)
	}
}

// takeAny gives the first of the key that waits longest.
func (s *shelf) takeAny() *job {
	if len(s.keys) == 0 {
		return nil
	}
	return s.take(s.keys[0])
}

// clear takes all.
func (s *shelf) clear() []*job {
	var all []*job
	for _, k := range s.keys {
		all = append(all, s.groups[k]...)
	}
	*s = shelf{}
	return all
}

func without(list []string, x string) []string {
	if i := slices.Index(list, x); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}
