package inbound

// hops counts the Received fields of a header as the content goes by.
type hops struct {
	n    int
	seen int  // how many octets of "received:" the current line has matched; -1: it can't match
	line int  // octets of the current line before its newline
	done bool // the header has ended
}

const receivedName = "received:"

// Write implements io.Writer; it takes content with CR LF newlines and never fails.
func (h *hops) Write(p []byte) (int, error) {
	for i := 0; i < len(p) && !h.done; i++ {
		h.octet(p[i])
	}
	return len(p), nil
}

func (h *hops) octet(c byte) {
	switch {
	case c == '\n':
		h.done = h.line == 0
		h.line, h.seen = 0, 0
		return
	case c == '\r':
		return
	}
	h.line++
	if h.seen < 0 || h.seen == len(receivedName) {
		return
	}
	if lower(c) != receivedName[h.seen] {
		h.seen = -1
		return
	}
	h.seen++
	if h.seen == len(receivedName) {
		h.n++
	}
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
