package mta

import (
	"fmt"
	"time"
)

// Level says what an event means for the operator.
type Level uint8

const (
	Notice Level = iota // worth knowing, nothing to do
	Alarm               // something is wrong, and stays so until an Over of the same kind and subject
	Over                // the alarm has ended
)

var levelNames = [...]string{"notice", "alarm", "over"}

func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("level %d", uint8(l))
}

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(b []byte) error {
	for i, n := range levelNames {
		if n == string(b) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("level %q is unknown", b)
}

// Kinds of events. The word is what webhooks are filtered by.
const (
	EventPrimaryAway  = "primary_away"       // alarm: a primary is down or refuses (Details: state, step)
	EventFlapping     = "primary_flapping"   // alarm: a primary keeps falling
	EventDrained      = "drained"            // notice: all that waited for a primary was handed over
	EventMaintenance  = "maintenance"        // notice: an operator closed or opened a primary, held or released a drain
	EventRoleLost     = "mx_role_lost"       // alarm: the DNS does not name us for a domain that we back up
	EventNoPrimary    = "no_primary"         // alarm: the DNS names nothing better than us, so mail waits
	EventCertificate  = "certificate_ends"   // alarm: a certificate ends soon
	EventSpoolFull    = "spool_full"         // alarm: the spool is above its level
	EventOldest       = "oldest_message"     // alarm: a message waits longer than it should
	EventBreaker      = "breaker_open"       // alarm: a primary refuses far too much, its drain has stopped
	EventListStale    = "list_stale"         // alarm: a list could not be read for long
	EventListShrunk   = "list_shrunk"        // alarm: a list lost too many recipients at once, and waits for a word
	EventListDead     = "dns_list_dead"      // alarm: a DNS list answers as no list does, and is not asked any more
	EventDamaged      = "message_damaged"    // alarm: something stored is damaged
	EventCommitFailed = "commit_failed"      // alarm: the disk failed to store something in the last hour
	EventBypass       = "parity_bypass"      // alarm: a primary refuses too much of what we take
	EventNotDelivered = "primary_refused_us" // alarm: a primary refuses our own session for good
	EventFilterDown   = "filter_down"        // alarm: a content filter does not answer
	EventDNSSilent    = "dns_silent"         // alarm: no resolver answers
)

// Event is something that an operator wants to hear of though nobody asked.
type Event struct {
	Kind    string            `json:"kind"`
	Subject string            `json:"subject,omitempty"` // of whom: a primary, a domain, a list; empty: of us
	Level   Level             `json:"level"`
	At      time.Time         `json:"at"`
	Text    string            `json:"text"` // a sentence that stands alone
	Details map[string]string `json:"details,omitempty"`
}

// Kinds lists every kind of event.
func Kinds() []string {
	return []string{
		EventPrimaryAway, EventFlapping, EventDrained, EventMaintenance, EventRoleLost, EventNoPrimary, EventCertificate,
		EventSpoolFull, EventOldest, EventBreaker, EventListStale, EventListShrunk, EventListDead, EventDamaged, EventCommitFailed, EventNotDelivered, EventBypass, EventFilterDown,
		EventDNSSilent,
	}
}
