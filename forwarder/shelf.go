package forwarder

// shelf holds the jobs of a route that are ready for the wire, by the key of the session that they need, each key's
// oldest first. It takes no lock: route.mu guards it.
type shelf struct {
	groups map[string][]*job
	keys   []string // of groups, the one that waits longest first
	n      int
}

func (s *shelf) put(key string, j *job) {
	if s.groups == nil {
		s.groups = make(map[string][]*job)
	}
	if _, ok := s.groups[key]; !ok {
		s.keys = append(s.keys, key)
	}
	s.groups[key] = append(s.groups[key], j)
	s.n++
}

// take gives the oldest of a key, nil if there is none.
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
	for i, k := range s.keys {
		if k == key {
			s.keys = append(s.keys[:i], s.keys[i+1:]...)
			break
		}
	}
	return j
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
