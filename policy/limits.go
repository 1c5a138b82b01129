package policy

import (
	linked "container/list"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy/internal/mta"
)

// Limits bound what one client network (/24 of IPv4, /64 of IPv6) or one sender domain may bring; who is above one is
// told 450 4.7.1 until the minute's share covers him again. They are far above what a large provider sends in an
// outage. 0 lifts a limit.
type Limits struct {
	// ClientMessagesPerMinute and ClientRecipientsPerMinute are of one client network.
	ClientMessagesPerMinute   int `yaml:"client_messages_per_minute"`
	ClientRecipientsPerMinute int `yaml:"client_recipients_per_minute"`
	// ClientUnknownPerMinute is how many recipients that do not exist, or of whom nothing is known, one client network
	// may name. Above it no recipient is answered for: who guesses addresses learns nothing.
	ClientUnknownPerMinute int `yaml:"client_unknown_per_minute"`
	// SenderRecipientsPerMinute is of one sender domain, from all clients. It should be several times that of one
	// client network: anybody can write a domain into MAIL FROM.
	SenderRecipientsPerMinute int `yaml:"sender_recipients_per_minute"`
	// Burst is how long's share may come at once.
	Burst time.Duration `yaml:"burst"`
	// Trusted are networks without these limits.
	Trusted []netip.Prefix `yaml:"trusted"`
}

func defaultLimits() Limits {
	return Limits{
		ClientMessagesPerMinute: 1000, ClientRecipientsPerMinute: 5000, ClientUnknownPerMinute: 200, SenderRecipientsPerMinute: 20_000,
		Burst:   5 * time.Minute,
		Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
	}
}

// Validate reports every mistake.
func (l *Limits) Validate() []mta.Fault {
	var faults []mta.Fault
	for _, n := range []struct {
		key string
		n   int
	}{
		{"client_messages_per_minute", l.ClientMessagesPerMinute}, {"client_recipients_per_minute", l.ClientRecipientsPerMinute},
		{"client_unknown_per_minute", l.ClientUnknownPerMinute}, {"sender_recipients_per_minute", l.SenderRecipientsPerMinute},
	} {
		if n.n < 0 || n.n > maxRate {
			faults = append(faults, mta.NewFault(n.key, "%d is not between 0 and %d", n.n, maxRate))
		}
	}
	if l.Burst < time.Minute || l.Burst > 24*time.Hour {
		faults = append(faults, mta.NewFault("burst", "%v is not between a minute and a day", l.Burst))
	}
	return faults
}

func (l *Limits) trusts(a netip.Addr) bool {
	return slices.ContainsFunc(l.Trusted, func(p netip.Prefix) bool { return p.Contains(a) })
}

const (
	maxRate     = 10_000_000
	maxAccounts = 30_000 // of client networks, and of sender domains; the one that was quiet longest is forgotten
)

// limits counts what comes. Nothing of it outlives the process: after a restart everybody may send one burst more,
// which is what a client that was quiet for Burst may do anyway.
type limits struct {
	mu      sync.Mutex // guards what follows
	clients *recent[netip.Prefix, account]
	senders *recent[string, account]
}

func newLimits() *limits {
	return &limits{clients: newRecent[netip.Prefix, account](maxAccounts), senders: newRecent[string, account](maxAccounts)}
}

// account is what one client network or sender domain has used up. The zero value has used nothing.
type account struct {
	messages, recipients, unknown debt
	told                          int64 // when its limit was last logged, in Unix nanoseconds
}

// debt is the part of a token bucket that is gone; it is paid back as time passes.
type debt struct {
	owed float64
	at   int64 // Unix nanoseconds
}

// paid is the debt at now, at a rate per minute.
func (d debt) paid(perMinute int, now int64) debt {
	owed := d.owed - float64(now-d.at)/float64(time.Minute)*float64(perMinute)
	return debt{max(0, owed), now}
}

// broke tells whether one more is too many. A rate of 0 is no limit.
func (d debt) broke(perMinute int, burst time.Duration, now int64) bool {
	return perMinute > 0 && d.paid(perMinute, now).owed+1 > float64(perMinute)*burst.Minutes()
}

func (d *debt) add(perMinute int, now int64) {
	if perMinute > 0 {
		*d = d.paid(perMinute, now)
		d.owed++
	}
}

// Names of the limits, for the log, the metrics and what the sender is told.
const (
	limitMessages   = "client_messages"
	limitRecipients = "client_recipients"
	limitUnknown    = "client_unknown"
	limitSender     = "sender_recipients"
)

// take counts one recipient, and its message if it is the first one, or names the limit that is reached. first tells
// that this was not said within the last minute.
func (l *limits) take(cfg Limits, env *mta.Envelope, now time.Time) (limit string, first bool) {
	client := clientOf(env)
	if !client.IsValid() || cfg.trusts(client) {
		return "", false
	}
	at := now.UnixNano()
	l.mu.Lock()
	defer l.mu.Unlock()
	who := l.clients.get(networkOf(client))
	newMessage := len(env.Rcpts) == 0
	switch {
	case who.unknown.broke(cfg.ClientUnknownPerMinute, cfg.Burst, at):
		limit = limitUnknown
	case newMessage && who.messages.broke(cfg.ClientMessagesPerMinute, cfg.Burst, at):
		limit = limitMessages
	case who.recipients.broke(cfg.ClientRecipientsPerMinute, cfg.Burst, at):
		limit = limitRecipients
	}
	var sender *account
	if domain := env.From.DomainKey(); limit == "" && domain != "" { // else what a refused client invents fills the table
		if sender = l.senders.get(domain); sender.recipients.broke(cfg.SenderRecipientsPerMinute, cfg.Burst, at) {
			limit, who = limitSender, sender
		}
	}
	if limit != "" {
		if first = at-who.told >= int64(time.Minute); first {
			who.told = at
		}
		return limit, first
	}
	if newMessage {
		who.messages.add(cfg.ClientMessagesPerMinute, at)
	}
	who.recipients.add(cfg.ClientRecipientsPerMinute, at)
	if sender != nil {
		sender.recipients.add(cfg.SenderRecipientsPerMinute, at)
	}
	return "", false
}

// guessed counts a recipient that does not exist.
func (l *limits) guessed(cfg Limits, env *mta.Envelope, now time.Time) {
	client := clientOf(env)
	if !client.IsValid() || cfg.trusts(client) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients.get(networkOf(client)).unknown.add(cfg.ClientUnknownPerMinute, now.UnixNano())
}

// limited refuses one recipient if a limit is reached; nil: none is.
func (p *Policy) limited(ctx context.Context, cfg Limits, env *mta.Envelope, now time.Time) *mta.Reply {
	limit, first := p.limits.take(cfg, env, now)
	if limit == "" {
		return nil
	}
	p.metrics.limited.WithLabelValues(limit).Inc()
	if first {
		p.log.LogAttrs(ctx, slog.LevelWarn, "limit reached", slog.String("limit", limit), slog.Any("peer", clientOf(env)), slog.String("from", env.From.String()))
	}
	if limit == limitSender {
		return mta.NewReply(450, "4.7.1", "too much mail from %s now, try again later", env.From.DomainKey())
	}
	return mta.NewReply(450, "4.7.1", "too much mail from your network now, try again later")
}

func clientOf(env *mta.Envelope) netip.Addr {
	if env == nil {
		return netip.Addr{}
	}
	return env.Peer.Addr.Addr().Unmap()
}

// networkOf is the network that a client's neighbours share: hosts of one customer mostly have a /24 or a /64.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, _ := a.WithZone("").Prefix(bits) // can't fail: a is valid and bits fit
	return p
}

// recent is a table that forgets what was not looked at longest.
type recent[K comparable, V any] struct {
	max   int
	m     map[K]*linked.Element
	order linked.List // the newest in front
}

type recentEntry[K comparable, V any] struct {
	key K
	val V
}

func newRecent[K comparable, V any](max int) *recent[K, V] {
	return &recent[K, V]{max: max, m: map[K]*linked.Element{}}
}

// get gives the entry of a key, a new one if there is none. It is valid until the next call.
func (r *recent[K, V]) get(k K) *V {
	if e, ok := r.m[k]; ok {
		r.order.MoveToFront(e)
		return &e.Value.(*recentEntry[K, V]).val
	}
	if len(r.m) >= r.max {
		oldest := r.order.Back()
		delete(r.m, r.order.Remove(oldest).(*recentEntry[K, V]).key)
	}
	e := &recentEntry[K, V]{key: k}
	r.m[k] = r.order.PushFront(e)
	return &e.val
}
