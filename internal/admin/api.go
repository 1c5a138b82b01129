package admin

import (
	"time"

	"understudy/healthprobe"
	"understudy/internal/mta"
	"understudy/policy"
	"understudy/spool"
)

// Status is the answer to GET /v1/status.
type Status struct {
	Hostname  string          `json:"hostname"`
	Version   string          `json:"version"`
	Started   time.Time       `json:"started"`
	Ready     bool            `json:"ready"`
	Reason    string          `json:"reason,omitempty"` // why we are not ready
	Primaries []PrimaryStatus `json:"primaries"`
	Domains   []DomainStatus  `json:"domains"`
	Overrides []Override      `json:"overrides,omitempty"` // what operators ordered
	Alarms    []mta.Event     `json:"alarms,omitempty"`    // that are on
	Helpers   []HelperStatus  `json:"helpers,omitempty"`   // DNS lists and filters
}

// HelperStatus is how a DNS list or a content filter does that our policy asks.
type HelperStatus struct {
	Kind  string    `json:"kind"` // dns_list, rspamd, milter, spamd or clamd
	Name  string    `json:"name"`
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	Why   string    `json:"why,omitempty"` // what is wrong with it
}

// PrimaryStatus is what we believe of one primary, and why.
type PrimaryStatus struct {
	Primary      string    `json:"primary"` // host:port
	State        string    `json:"state"`   // unknown, up, refusing or down
	Since        time.Time `json:"since"`
	Cause        string    `json:"cause,omitempty"`    // why it is not up
	Step         string    `json:"step,omitempty"`     // the step of a session at which it fails
	Flapping     bool      `json:"flapping,omitempty"` // it comes and goes, so more good probes are wanted
	Probed       time.Time `json:"probed,omitzero"`
	LastDelivery time.Time `json:"last_delivery,omitzero"`
	Domains      int       `json:"domains"` // how many domains go there

	Sessions    int              `json:"sessions"`               // of ours with it now
	Inline      int              `json:"inline"`                 // transactions with it while senders wait
	Warm        int              `json:"warm"`                   // sessions that wait for such a one
	PausedUntil time.Time        `json:"paused_until,omitzero"`  // after trouble in a delivery
	Breaker     time.Time        `json:"breaker_since,omitzero"` // its drain has stopped: it refuses far too much
	Greylists   time.Time        `json:"greylists,omitzero"`     // it was seen to greylist us
	TLS         map[string]int64 `json:"tls,omitempty"`          // sessions by what became of TLS, in the words of RFC 8460
}

// DomainStatus is one domain's part of the queue.
type DomainStatus struct {
	Domain     string    `json:"domain"`
	Configured bool      `json:"configured"`
	Messages   int64     `json:"messages"` // that wait, the held ones not counted
	Held       int64     `json:"held"`
	Bytes      int64     `json:"bytes"`
	Leased     int64     `json:"leased"` // being delivered now
	Oldest     time.Time `json:"oldest,omitzero"`
	NextDue    time.Time `json:"next_due,omitzero"`
}

// Message is one delivery in the queue: a message under one destination.
type Message struct {
	ID       mta.ID       `json:"id"`
	Domain   string       `json:"domain"`
	State    string       `json:"state"` // waiting, delivering or held
	From     mta.Path     `json:"from"`
	Rcpts    []RcptStatus `json:"rcpts"`
	Size     int64        `json:"size"`
	Received time.Time    `json:"received"`
	Due      time.Time    `json:"due,omitzero"`
	Expires  time.Time    `json:"expires,omitzero"`
	Attempts int          `json:"attempts"`
	Client   string       `json:"client"` // address of who sent it
	Helo     string       `json:"helo"`
	Proto    string       `json:"proto"`
}

// RcptStatus is one recipient's standing.
type RcptStatus struct {
	Addr    mta.Path    `json:"addr"`
	Outcome mta.Outcome `json:"outcome"`
	Reply   string      `json:"reply,omitempty"` // the last one
	Primary string      `json:"primary,omitempty"`
	At      time.Time   `json:"at,omitzero"`
}

// Queue is the answer to GET /v1/queue. Next is empty on the last page, else the `after` of the next.
type Queue struct {
	Messages []Message `json:"messages"`
	Next     string    `json:"next,omitempty"`
}

// QueueQuery selects messages; the zero value is all.
type QueueQuery struct {
	Domain, From, Rcpt string
	Held               *bool
	After              string
	Limit              int
}

// FlushRequest says what to try now; the zero value is everything.
type FlushRequest struct {
	Domain string `json:"domain,omitempty"`
	ID     string `json:"id,omitempty"`
}

// Flushed says what a flush will try.
type Flushed struct {
	Messages int64    `json:"messages"`       // that wait and were asked for
	Closed   []string `json:"down,omitempty"` // primaries that are not up: their mail waits until they are
	Held     int64    `json:"held,omitempty"` // held ones are not flushed
	Domains  []string `json:"domains"`        // what was flushed
}

// Reloaded says what an operator should know after a reload.
type Reloaded struct {
	// NeedRestart are the keys that were changed and are put in force only by a restart.
	NeedRestart []string `json:"need_restart,omitempty"`
	// Strays are destinations that are not configured and have mail here: it goes where the DNS says.
	Strays []string `json:"strays,omitempty"`
}

// apiError is the body of every answer that is not 2xx.
type apiError struct {
	Error string `json:"error"`
}

// Operation selects messages for POST /v1/queue/{hold|release|retry|drop|redirect}: by ID, or by a filter. A filter that
// matches everything must be meant: All.
type Operation struct {
	IDs       []mta.ID      `json:"ids,omitempty"`
	Domain    string        `json:"domain,omitempty"`
	From      string        `json:"from,omitempty"` // part of the sender's address
	Rcpt      string        `json:"rcpt,omitempty"` // part of a recipient's address
	Held      *bool         `json:"held,omitempty"`
	OlderThan time.Duration `json:"older_than,omitempty"` // nanoseconds since receipt
	All       bool          `json:"all,omitempty"`
	To        mta.Path      `json:"to,omitzero"` // redirect: the new address
}

// Operated says how many deliveries an operation changed.
type Operated struct {
	Messages int `json:"messages"`
}

// Primaries is the answer to GET /v1/primaries.
type Primaries struct {
	Primaries []healthprobe.PrimaryStatus `json:"primaries"`
	Domains   []healthprobe.DomainStatus  `json:"domains"`
}

// Overrides is the answer to GET /v1/overrides.
type Overrides struct {
	Overrides []healthprobe.Override `json:"overrides"`
}

// Outages is the answer to GET /v1/outages.
type Outages struct {
	Outages []healthprobe.Outage `json:"outages"`
}

// Alarms is the answer to GET /v1/alarms.
type Alarms struct {
	Alarms []mta.Event `json:"alarms"`
}

// ResumeRequest names the primary whose breaker is closed; empty is all.
type ResumeRequest struct {
	Primary string `json:"primary,omitempty"`
}

// Resumed says whether a breaker was open.
type Resumed struct {
	Was bool `json:"was_open"`
}

// Sources is the answer to GET /v1/sources.
type Sources struct {
	Sources []policy.SourceStatus `json:"sources"`
}

// SourceRequest names a source of recipients, and for a confirmation the domain that lost some.
type SourceRequest struct {
	Name   string `json:"name"`
	Domain string `json:"domain,omitempty"`
}

// Progress is a line of an answer that takes long. Total is 0 where it is not known.
type Progress struct {
	Done  int `json:"done"`
	Total int `json:"total,omitempty"`
}

// The parts' own words, as the API shows them.
type (
	Override     = healthprobe.Override      // what an operator ordered
	Probed       = healthprobe.PrimaryStatus // a primary in full, with the last probe
	Usage        = spool.Usage               // how full the spool is
	Verification = spool.Verification        // what reading everything found
	Transfer     = spool.Transfer            // what a backup or a restore did
	Answer       = policy.Answer             // whether mail for a recipient would be taken, and why
)

// The kinds of Override.
const (
	Maintenance = healthprobe.Maintenance
	Hold        = healthprobe.Hold
)
