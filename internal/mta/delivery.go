package mta

import (
	"fmt"
	"time"
)

// Outcome is where a recipient stands. Delivered, Returned and Dropped are its end; a message whose recipients have
// all ended leaves the spool.
type Outcome uint8

const (
	Deferred    Outcome = iota // waits for its next try
	Delivered                  // the primary answered 2yz
	Quarantined                // held until an operator moves it: the primary refused it for good, or it expired
	Returned                   // a report of its failure was spooled in the same transaction
	Dropped                    // an operator removed it
)

var outcomeNames = [...]string{"deferred", "delivered", "quarantined", "returned", "dropped"}

func (o Outcome) String() string {
	if int(o) < len(outcomeNames) {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// MarshalText implements encoding.TextMarshaler.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Outcome) UnmarshalText(b []byte) error {
	for i, n := range outcomeNames {
		if n == string(b) {
			*o = Outcome(i)
			return nil
		}
	}
	return fmt.Errorf("outcome %q is unknown", b)
}

// Ended reports whether nothing is left to do for the recipient.
func (o Outcome) Ended() bool { return o == Delivered || o == Returned || o == Dropped }

// RcptStatus is how one recipient of a message stands.
type RcptStatus struct {
	N int `json:"n"` // its place in Envelope.Rcpts
	Recipient
	Outcome Outcome   `json:"outcome"`
	Reply   Reply     `json:"reply,omitzero"`    // the last that was said of it
	Primary string    `json:"primary,omitempty"` // who said it
	At      time.Time `json:"at,omitzero"`       // when
}

// LeaseRef names one lease of one delivery: the recipients of a message under one destination. Token rises with every
// claim, so that who lost a lease can do no harm with it.
type LeaseRef struct {
	ID    ID
	Dest  string
	Token uint64
}

// Lease is a delivery handed to one forwarder until a time.
type Lease struct {
	LeaseRef
	Until    time.Time
	Attempts int   // tries that ended in a reply before this one
	Released bool  // an operator gave it back to the queue out of quarantine: it was looked at, and is to go
	Size     int64 // octets of content
	Envelope *Envelope
	Rcpts    []RcptStatus // only this destination's, only the deferred
}

// ClaimRequest asks for due deliveries.
type ClaimRequest struct {
	Dest      string        // the destination; required
	Max       int           // at most so many
	Lease     time.Duration // for so long
	IgnoreDue bool          // due or not, in due order: a flush
	Expired   bool          // only deliveries past their Expires, due or not; Dest may be empty then
	ID        ID            // only this message, if set
}

// RcptResult is what became of one recipient in one try.
type RcptResult struct {
	N       int // its place in Envelope.Rcpts
	Outcome Outcome
	Reply   Reply
	Primary string
}

// Settlement ends a lease: the results, the next try of what stays, and reports, in one durable step.
type Settlement struct {
	Ref     LeaseRef
	Results []RcptResult // a recipient that is not named stays as it was
	NextDue time.Time    // for what stays deferred
	Reports []Report     // spooled in the same transaction, or not at all
}

// Report is a small message of our own, to be spooled with a settlement.
type Report struct {
	Envelope *Envelope
	Content  []byte
}
