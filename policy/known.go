package policy

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
)

// state is all that a decision needs. It is never changed once it is in Policy.state.
type state struct {
	cfg        Config
	always     map[string]bool   // folded local parts; postmaster is among them
	postmaster string            // the domain of a bare <postmaster>; "" if no domain is configured
	domains    map[string]*known // by the form of mta.Domain
}

// known is what we know of a domain's recipients.
type known struct {
	views     []*view
	acceptAll bool
	unknown   Unknown
	whileUp   WhileUp
	lists     string // the domain whose lists hold, the domain itself unless it is an alias
	complete  bool   // the lists say that who is missing does not exist
}

// view is what one source says of one domain.
type view struct {
	name     string
	counters *verdictCounters
	set      *set // nil: none of the domain, or not read yet
	complete bool
	held     bool    // a loss waits for an operator's word
	src      *source // nil: a file, which is read at a reload
	ask      *asker  // asked for each address, in place of set
	read     bool    // the source was read for this domain
}

// newState fits what was read to the domains.
func newState(cfg Config, domains map[string]Domain, files map[string]*set, sources map[string]*source, m *metrics) *state {
	s := &state{cfg: cfg, always: map[string]bool{"postmaster": true}, domains: make(map[string]*known, len(domains))}
	for _, l := range cfg.AlwaysTaken {
		s.always[fold(l)] = true
	}
	counters := map[string]*verdictCounters{"": m.counters(recipientsLabel)} // files have one name for all
	for name := range sources {
		counters[name] = m.counters(name)
	}
	for name, d := range domains {
		lists := listsOf(name, domains)
		of := domains[lists]
		k := &known{acceptAll: of.AcceptAll, unknown: d.Unknown, whileUp: d.WhileUp, lists: lists}
		if of.Recipients != "" {
			k.views = append(k.views, &view{name: of.Recipients, counters: counters[""], set: files[lists], complete: true, read: true})
		}
		for _, n := range of.Sources {
			if src := sources[n]; src != nil {
				k.views = append(k.views, src.view(lists, counters[n]))
			}
		}
		k.complete = slices.ContainsFunc(k.views, func(v *view) bool { return v.complete }) &&
			slices.ContainsFunc(k.views, func(v *view) bool { return v.set != nil || v.ask != nil })
		s.domains[name] = k
	}
	s.postmaster = postmasterDomain(cfg.Hostname, domains)
	return s
}

// postmasterDomain is where a bare <postmaster> goes: the longest configured domain that our hostname is or lies in,
// for whoever writes to the postmaster of this host means the people who run it; else the first by name.
func postmasterDomain(hostname string, domains map[string]Domain) string {
	host, err := mta.Domain(hostname)
	for err == nil && host != "" {
		if _, ok := domains[host]; ok {
			return host
		}
		_, host, _ = strings.Cut(host, ".")
	}
	if len(domains) == 0 {
		return ""
	}
	return slices.Min(slices.Collect(maps.Keys(domains)))
}

// checked is when the view was last found to be what its source says.
func (v *view) checked() time.Time {
	var at int64
	switch {
	case v.src != nil:
		at = v.src.checked.Load()
	case v.set != nil:
		at = v.set.at
	}
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// fresh tells whether who is missing can be believed to be missing.
func (v *view) fresh(now time.Time) bool {
	if v.src == nil {
		return true // what is wrong with a file is said at the reload
	}
	return v.read && !v.held && now.Sub(v.checked()) < v.src.cfg.StaleAfter
}

func (v *view) has(local, base string) bool {
	return v.set != nil && (v.set.has(local) || base != "" && v.set.has(base))
}

// names tells whether a list has the local part by its own name.
func (k *known) names(local string) bool {
	return slices.ContainsFunc(k.views, func(v *view) bool { return v.set != nil && v.set.names(local) })
}

// base is the local part without its extension, "" if it has none.
func (s *state) base(local string) string {
	if i := strings.IndexAny(local, s.cfg.RecipientDelimiter); i > 0 {
		return local[:i]
	}
	return ""
}

// hear asks those who may know, the nearest first, until the answer is clear.
func (p *Policy) hear(ctx context.Context, s *state, k *known, dest, local string, now time.Time) hearing {
	base := s.base(local)
	h := hearing{unknown: k.unknown, acceptAll: k.acceptAll, complete: k.complete, fresh: true}
	if h.always = s.always[local] || base != "" && s.always[base]; h.always {
		return h
	}
	for _, v := range k.views {
		if v.has(local, base) {
			h.listed, h.at = v, v.checked()
			return h
		}
	}
	if k.acceptAll {
		return h
	}
	for _, v := range k.views {
		if v.ask != nil {
			found, at, err := p.askOne(ctx, v, k.lists, local, base, now)
			if found {
				h.asked, h.at = v, at
				return h
			}
			h.fresh = h.fresh && (err == nil || !v.complete)
		}
		if !v.complete {
			continue
		}
		at := v.checked()
		h.fresh = h.fresh && v.fresh(now)
		if h.oldest.IsZero() || at.Before(h.oldest) {
			h.oldest, h.slowest = at, v
		}
	}
	h.learned, h.alive = p.learned.look(dest, local, base, !k.complete, now)
	return h
}

// askOne asks a database.
func (p *Policy) askOne(ctx context.Context, v *view, domain, local, base string, now time.Time) (found bool, at time.Time, err error) {
	for _, l := range []string{local, base} {
		if l == "" {
			continue
		}
		if found, at, err = v.ask.ask(ctx, l+"@"+domain, now); err != nil {
			if err != errAskRest {
				p.log.LogAttrs(ctx, slog.LevelWarn, "recipient source does not answer", slog.String("source", v.name), slog.Any("err", err))
			}
			return false, time.Time{}, err
		}
		v.src.checked.Store(max(v.src.checked.Load(), at.UnixNano()))
		if found {
			return true, at, nil
		}
	}
	return false, at, nil
}
