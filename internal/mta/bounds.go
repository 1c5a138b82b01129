package mta

// Bounds are what the primaries of a domain can take, as far as they have told us. Mail beyond them would be accepted
// now only to be refused later, when nobody is there any more to be told.
type Bounds struct {
	Known        bool  `json:"known"`                // false: they told nothing yet, and nothing is bounded
	Size         int64 `json:"size,omitempty"`       // octets; 0 is no limit (RFC 1870)
	EightBitMIME bool  `json:"8bitmime,omitempty"`   // RFC 6152
	SMTPUTF8     bool  `json:"smtputf8,omitempty"`   // RFC 6531
	RequireTLS   bool  `json:"requiretls,omitempty"` // RFC 8689
}

// Check refuses what a domain's primaries can't take: a declared or real size (0: not known), and MAIL parameters.
func (b Bounds) Check(size int64, p Params) *Reply {
	switch {
	case !b.Known:
		return nil
	case b.Size > 0 && size > b.Size:
		return NewReply(552, "5.3.4", "the message is larger than the %d octets that this domain takes", b.Size)
	case p.SMTPUTF8 && !b.SMTPUTF8:
		return NewReply(550, "5.6.7", "this domain does not take internationalized mail")
	case p.RequireTLS && !b.RequireTLS:
		return NewReply(550, "5.7.30", "REQUIRETLS can't be kept on the way to this domain")
	}
	return nil
}
