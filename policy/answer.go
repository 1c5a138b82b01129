package policy

import (
	"fmt"
	"slices"
	"time"

	"understudy/internal/mta"
)

// Verdict is what becomes of a recipient. The zero value is the honest one.
type Verdict uint8

// The verdicts.
const (
	Defer  Verdict = iota // nothing is known: 4yz
	Accept                // taken
	Reject                // refused for good: 5yz
)

var verdictNames = [...]string{"defer", "accept", "reject"}

func (v Verdict) String() string { return verdictNames[v%3] }

// MarshalText implements encoding.TextMarshaler.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Verdict) UnmarshalText(b []byte) error {
	i := slices.Index(verdictNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("verdict %q is unknown", b)
	}
	*v = Verdict(i)
	return nil
}

// Answer is what is said of a recipient, and who says it.
type Answer struct {
	Addr    mta.Path `json:"addr"` // a bare postmaster has got its domain
	Dest    string   `json:"dest,omitempty"`
	Verdict Verdict  `json:"verdict"`
	// Source decides: the file or the source that lists the recipient, "learned", "always_taken", "accept_all",
	// "unknown" (the domain's setting), or "relay" (not one of our domains).
	Source string `json:"source"`
	// Known says that a list, or a reply of the primary that is still believed, names the recipient himself.
	Known bool          `json:"known,omitempty"`
	Age   time.Duration `json:"age,omitempty"` // of that knowledge; 0 for what the configuration says
	Reply *mta.Reply    `json:"reply,omitempty"`
	Says  []Saying      `json:"says,omitempty"` // every source's own word
}

// Saying is what one source says of a recipient.
type Saying struct {
	Source   string        `json:"source"`
	Says     string        `json:"says"` // listed, not listed, not read yet, exists, does not exist, nothing, or an error
	Complete bool          `json:"complete,omitempty"`
	Fresh    bool          `json:"fresh,omitempty"`
	Age      time.Duration `json:"age,omitempty"`
}

// Names of what decides when no list does.
const (
	byAlways    = "always_taken"
	byAcceptAll = "accept_all"
	byUnknown   = "unknown"
	byRelay     = "relay"
	byLearned   = "learned"
)

// finding is a decision about one recipient.
type finding struct {
	verdict Verdict
	source  string
	by      *view     // whose source that is; nil: no list's
	known   bool      // the recipient himself is named
	at      time.Time // of the knowledge; zero: the configuration's
}

// hearing is what the sources say of one recipient at one moment.
type hearing struct {
	always    bool
	acceptAll bool
	listed    *view     // the first list that has him; nil: none
	asked     *view     // the database that was asked and has him; nil: none
	complete  bool      // some list says that who is missing does not exist …
	fresh     bool      // … and all that say so are fresh, and all databases answered
	oldest    time.Time // the oldest look at one of these
	slowest   *view     // whose that is
	learned   entry
	alive     bool // learned is still believed
	at        time.Time
	unknown   Unknown
}

// decide weighs what was said. Who is named anywhere is taken: the worst that can come of it is quarantine. Only lists
// that are complete and fresh, or the primary's own word, refuse for good.
func (h *hearing) decide() finding {
	switch {
	case h.always:
		return finding{verdict: Accept, source: byAlways}
	case h.listed != nil:
		return finding{Accept, h.listed.name, h.listed, true, h.at}
	case h.acceptAll:
		return finding{verdict: Accept, source: byAcceptAll}
	case h.asked != nil:
		return finding{Accept, h.asked.name, h.asked, true, h.at}
	case h.alive && h.learned.good:
		return finding{Accept, byLearned, nil, true, h.learned.when()}
	case h.complete && h.fresh:
		return finding{Reject, h.slowest.name, h.slowest, false, h.oldest}
	case h.alive:
		return finding{Reject, byLearned, nil, false, h.learned.when()}
	}
	return finding{verdict: h.unknown.verdict(), source: byUnknown}
}

func (u Unknown) verdict() Verdict {
	switch u {
	case AcceptUnknown:
		return Accept
	case RejectUnknown:
		return Reject
	}
	return Defer
}

// reply is what a sender is told, nil if the recipient is taken.
func (f finding) reply(dest string) *mta.Reply {
	switch f.verdict {
	case Accept:
		return nil
	case Reject:
		return mta.NewReply(550, "5.1.1", "no such recipient at %s", dest)
	}
	return mta.NewReply(450, "4.1.1", "nobody here knows now whether the recipient exists at %s, try again later", dest)
}
