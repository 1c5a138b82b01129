package mta

import (
	"fmt"
	"time"
)

// Action is what is to become of a message, the mildest first.
type Action uint8

const (
	Accept     Action = iota // taken
	Mark                     // taken, and its header says what speaks against it
	Quarantine               // taken and held: an operator decides
	Defer                    // 4yz: the sender is to try again
	Reject                   // 5yz
)

var actionNames = [...]string{"accept", "mark", "quarantine", "defer", "reject"}

func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action %d", uint8(a))
}

// MarshalText implements encoding.TextMarshaler.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Action) UnmarshalText(b []byte) error {
	for i, n := range actionNames {
		if n == string(b) {
			*a = Action(i)
			return nil
		}
	}
	return fmt.Errorf("want accept, mark, quarantine, defer or reject, not %q", b)
}

// Finding is one thing that speaks for or against a message.
type Finding struct {
	Name   string  `json:"name"`             // stable, for weights, statistics and people: "dnsbl:zen.example.org", "spf:fail", "rspamd:reject"
	Text   string  `json:"text,omitempty"`   // for the log and, where it decides, for the sender
	Detail string  `json:"detail,omitempty"` // for the log and for operators alone: a filter's symbols, an error
	Weight float64 `json:"weight,omitempty"` // negative speaks for the message
	Action Action  `json:"action,omitempty"` // the least that it asks for by itself, whatever the score
	Status string  `json:"status,omitempty"` // the enhanced status code below 5 and 4 where it decides: "7.23"; empty: "7.1"
}

// Auth is what was found out about who a message is from, in the words of RFC 8601. The zero value is that nobody looked.
type Auth struct {
	SPF   AuthResult   `json:"spf,omitzero"`  // of the reverse-path; Domain is its domain
	Helo  AuthResult   `json:"helo,omitzero"` // SPF of the HELO name
	DKIM  []AuthResult `json:"dkim,omitempty"`
	DMARC AuthResult   `json:"dmarc,omitzero"` // Domain is that of the From field
	// Aligned tells that SPF or a valid DKIM signature speaks for the domain of the From field.
	Aligned bool `json:"aligned,omitempty"`
}

// AuthResult is one method's result.
type AuthResult struct {
	Result   string `json:"result,omitempty"` // "pass", "fail", "softfail", "temperror", …; empty: not looked at
	Domain   string `json:"domain,omitempty"`
	Selector string `json:"selector,omitempty"` // DKIM
	Reason   string `json:"reason,omitempty"`   // for people; DMARC: the policy that was published
}

// Verdict is what our own policy makes of a message.
type Verdict struct {
	Action   Action    `json:"action"`
	Score    float64   `json:"score"`
	Findings []Finding `json:"findings,omitempty"`
	Auth     Auth      `json:"auth,omitzero"`
	At       time.Time `json:"at,omitzero"`
}

// Authentic reports that the sender was proved: SPF passed or an aligned DKIM signature is valid, and DMARC did not fail.
// Only then may a report go to the reverse-path (RFC 5321, 6.2).
func (v *Verdict) Authentic() bool {
	return v != nil && (v.Auth.SPF.Result == "pass" || v.Auth.Aligned) && v.Auth.DMARC.Result != "fail"
}

// Decider is the finding that weighs most for the verdict's action; nil if nothing speaks against the message.
func (v *Verdict) Decider() *Finding {
	var best *Finding
	for i := range v.Findings {
		f := &v.Findings[i]
		if f.Action == Accept && f.Weight <= 0 {
			continue
		}
		if best == nil || f.Action > best.Action || f.Action == best.Action && f.Weight > best.Weight {
			best = f
		}
	}
	return best
}

// Reply is what the sender is told; nil if the message is taken.
func (v *Verdict) Reply() *Reply {
	class, code := "5.", 550
	switch v.Action {
	case Reject:
	case Defer:
		class, code = "4.", 451
	default:
		return nil
	}
	status, text := "7.1", "the message is refused by policy"
	if f := v.Decider(); f != nil {
		if f.Status != "" {
			status = f.Status
		}
		if f.Text != "" {
			text = f.Text
		}
	}
	return NewReply(code, class+status, "%s", text)
}
