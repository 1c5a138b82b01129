package mta

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Fate is what a primary said of a message, or of one recipient, in the end.
type Fate uint8

const (
	Taken          Fate = iota // 2yz
	RefusedContent             // 5yz for what the message is: its content, its sender, its client
	RefusedRcpt                // 5yz for whom it is: no such recipient, or a mailbox that can't take it
	PutOff                     // 4yz
)

var fateNames = [...]string{"accepted", "refused", "no_recipient", "deferred"}

func (f Fate) String() string {
	if int(f) < len(fateNames) {
		return fateNames[f]
	}
	return fmt.Sprintf("fate %d", uint8(f))
}

// MarshalText implements encoding.TextMarshaler.
func (f Fate) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Fate) UnmarshalText(b []byte) error {
	i := slices.Index(fateNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("fate %q is unknown", b)
	}
	*f = Fate(i)
	return nil
}

// FateOf reads a primary's reply to RCPT or to content. A bad sender's address (5.1.7, 5.1.8; RFC 3463, 3.2) is about
// the message, and so is every refusal whose reason is not the recipient: servers say at RCPT what they know of the
// client.
func FateOf(r Reply, atRcpt bool) Fate {
	switch {
	case r.Positive():
		return Taken
	case !r.Permanent():
		return PutOff
	case r.Enhanced == "5.1.7" || r.Enhanced == "5.1.8":
		return RefusedContent
	case r.Enhanced == "5.1.0":
		return refusedAt(atRcpt)
	case strings.HasPrefix(r.Enhanced, "5.1.") || strings.HasPrefix(r.Enhanced, "5.2."):
		return RefusedRcpt
	case r.Enhanced == "":
		return refusedAt(atRcpt && r.Code != 554)
	}
	return RefusedContent
}

func refusedAt(rcpt bool) Fate {
	if rcpt {
		return RefusedRcpt
	}
	return RefusedContent
}

// PairKind says when our verdict of a Pair was made.
type PairKind uint8

const (
	PairShadow    PairKind = iota // beside the primary, while it is up
	PairReceipt                   // when we took the message, while it was down
	PairHindsight                 // before we handed it over
)

var pairKindNames = [...]string{"shadow", "receipt", "hindsight"}

func (k PairKind) String() string {
	if int(k) < len(pairKindNames) {
		return pairKindNames[k]
	}
	return fmt.Sprintf("pair kind %d", uint8(k))
}

// MarshalText implements encoding.TextMarshaler.
func (k PairKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *PairKind) UnmarshalText(b []byte) error {
	i := slices.Index(pairKindNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("kind of pair %q is unknown", b)
	}
	*k = PairKind(i)
	return nil
}

// Pair is our verdict and the primary's word for the same mail.
type Pair struct {
	Kind    PairKind
	Domain  string // the destination, in the form of Domain
	ID      ID     // of the message; zero before it has one
	At      time.Time
	Ours    Action
	Reasons []string // names of our findings that speak against the mail
	Theirs  Fate
	Reply   Reply // of the primary
}
