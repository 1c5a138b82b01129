package forwarder

import (
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// InlineConfig is about the sessions over which a primary that is up judges mail as it comes in.
type InlineConfig struct {
	// Most transactions at a time with one route, which is one set of primaries; each has a session of its own.
	Sessions int `yaml:"sessions"`
	// So many sessions are kept ready while mail goes inline, within sessions: connected, greeted, in TLS. 0: none.
	Warm int `yaml:"warm"`
	// How long a session without a transaction is kept, and how long after the last one new ones are made ready.
	Idle time.Duration `yaml:"idle"`
	// How long a transaction waits while all sessions are taken; then the sender gets 451 4.3.2.
	Wait time.Duration `yaml:"wait"`
	// How long the reply to the content is awaited; then the sender gets 451, and the message may come twice.
	FinalTimeout time.Duration `yaml:"final_timeout"`
}

func defaultInline() InlineConfig {
	return InlineConfig{Sessions: 50, Warm: 4, Idle: 30 * time.Second, Wait: 5 * time.Second, FinalTimeout: 90 * time.Second}
}

func (c *InlineConfig) validate(add func(bad bool, key, format string, args ...any)) {
	add(c.Sessions < 1 || c.Sessions > 1000, "inline.sessions", "%d: must be 1 to 1000", c.Sessions)
	add(c.Warm < 0 || c.Warm > 1000, "inline.warm", "%d: must be 0 to 1000", c.Warm)
	add(c.Idle < time.Second || c.Idle > 4*time.Minute, "inline.idle", "%s: must be 1s to 4m, which primaries wait", c.Idle)
	add(c.Wait < 0 || c.Wait > 2*time.Minute, "inline.wait", "%s: must be 0s to 2m", c.Wait)
	add(c.FinalTimeout < time.Second || c.FinalTimeout > 8*time.Minute, "inline.final_timeout", "%s: must be 1s to 8m: the sender waits 10m", c.FinalTimeout)
}

// inlineLimits are the time limits of a session for which a sender waits, who is patient for five minutes at best.
func inlineLimits(t smtpc.Timeouts) smtpc.Timeouts {
	least := func(t *time.Duration, most time.Duration) {
		if *t <= 0 || *t > most {
			*t = most
		}
	}
	least(&t.Lookup, 10*time.Second)
	least(&t.Dial, 10*time.Second)
	least(&t.Banner, 30*time.Second)
	least(&t.EHLO, 30*time.Second)
	least(&t.TLS, 30*time.Second)
	least(&t.Mail, time.Minute)
	least(&t.Rcpt, time.Minute) // it may ask others about the recipient or the client
	least(&t.Data, time.Minute)
	least(&t.Block, time.Minute)
	least(&t.Overall, 45*time.Second)
	return t
}

// unfitReply says why no primary can take a message as it is: for good, if all of them were asked.
func unfitReply(err error, all bool) *mta.Reply {
	code, class := 550, "5"
	if !all {
		code, class = 450, "4"
	}
	switch err {
	case smtpc.ErrNeedsUTF8:
		return mta.NewReply(code, class+".6.7", "the recipient's server does not take internationalized mail")
	case smtpc.ErrNeedsRequireTLS:
		return mta.NewReply(code, class+".7.30", "REQUIRETLS can't be kept on the way to the recipient's server")
	case smtpc.ErrNeeds8Bit:
		return mta.NewReply(code+4*(code/550), class+".6.3", "the recipient's server does not take 8-bit content")
	case smtpc.ErrTooBig:
		return mta.NewReply(code+2, class+".3.4", "the message is larger than the recipient's server takes")
	}
	return mta.NewReply(553, "5.1.3", "the address can't be passed on") // smtpc.ErrUnsafe
}
