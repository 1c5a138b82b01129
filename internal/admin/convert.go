package admin

import (
	"time"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/spool"
)

// messages puts the spool's items into the words of the API.
func messages(items []spool.Item) []Message {
	out := make([]Message, 0, len(items))
	for i := range items {
		out = append(out, message(&items[i]))
	}
	return out
}

func message(it *spool.Item) Message {
	m := Message{
		ID: it.ID, Domain: it.Dest, State: "waiting", Size: it.Size, Due: it.Due, Expires: it.Expires, Attempts: it.Attempts,
		From: it.Envelope.From, Received: it.Envelope.Received,
		Helo: it.Envelope.Peer.Helo, Proto: it.Envelope.Peer.Proto,
	}
	if a := it.Envelope.Peer.Addr; a.IsValid() {
		m.Client = a.Addr().String()
	}
	switch {
	case it.Held:
		m.State = "held"
	case it.Leased:
		m.State = "delivering"
	}
	for _, r := range it.Rcpts {
		st := RcptStatus{Addr: r.Addr, Outcome: r.Outcome, Primary: r.Primary, At: r.At}
		if r.Reply.Code != 0 {
			st.Reply = r.Reply.String()
		}
		m.Rcpts = append(m.Rcpts, st)
	}
	return m
}

// primaryStatuses joins what the prober and the forwarder know of each primary.
func primaryStatuses(all []healthprobe.PrimaryStatus, sent []forwarder.PrimaryStatus) []PrimaryStatus {
	byName := make(map[string]forwarder.PrimaryStatus, len(sent))
	for _, p := range sent {
		byName[p.Primary] = p
	}
	out := make([]PrimaryStatus, 0, len(all))
	for _, p := range all {
		st := PrimaryStatus{
			Primary: p.Primary, State: p.State.String(), Since: p.Since, Cause: p.Why, Step: p.Step, Flapping: p.Flapping,
			Domains: p.Domains, LastDelivery: p.Took,
		}
		if p.Last != nil {
			st.Probed = p.Last.At
		}
		f := byName[p.Primary]
		st.Inline, st.Warm = f.Inline, f.Warm
		st.Sessions, st.Breaker, st.Greylists, st.TLS = f.Sessions, f.Breaker, f.Greylist, f.TLS
		if f.Until.After(time.Now()) {
			st.PausedUntil = f.Until
		}
		out = append(out, st)
	}
	return out
}
