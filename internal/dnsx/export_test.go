package dnsx

// Kept is how many answers the cache holds.
func (r *Resolver) Kept() int {
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	return len(r.cache.answers)
}
