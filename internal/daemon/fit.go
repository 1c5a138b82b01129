package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"understudy/healthprobe"
	"understudy/inbound"
	"understudy/internal/config"
	"understudy/internal/mta"
	"understudy/spool"
)

// openTables opens the small tables. Without them we forget what we learned at each restart, but mail goes on.
func (d *Daemon) openTables(ctx context.Context, cfg *config.Config) spool.State {
	tables, err := spool.OpenState(ctx, cfg.Spool, d.opts.Log)
	if err != nil {
		d.opts.Log.LogAttrs(ctx, slog.LevelError, "tables not opened, what is learned is forgotten at the next restart", slog.Any("err", err))
		return spool.NewMemoryState()
	}
	return tables
}

// counted is the spool as inbound sees it: outages tell how many messages they made.
type counted struct {
	*spool.Store
	prober *healthprobe.Prober
}

func (c counted) Put(ctx context.Context, env *mta.Envelope, body io.Reader) error {
	if err := c.Store.Put(ctx, env, body); err != nil {
		return err
	}
	for _, dest := range env.Dests() {
		c.prober.Taken(dest)
	}
	return nil
}

// recovered is what ETRN and other hints bring: a probe now and, when that is good, the drain. A hint is never believed
// unprobed.
func (d *Daemon) recovered(ctx context.Context, domain string) error {
	d.prober.Hint(domain)
	d.fwd.Flush(ctx, domain, mta.ID{})
	return nil
}

// primaryAddrs are the addresses of a domain's primaries, as last looked up.
func (d *Daemon) primaryAddrs(domain string) []netip.Addr {
	st, ok := d.prober.Domain(domain)
	if !ok {
		return nil
	}
	keys := slices.Concat(st.Tiers...)
	var addrs []netip.Addr
	for _, p := range d.prober.Status() {
		if slices.Contains(keys, p.Primary) {
			addrs = append(addrs, p.Addrs...)
		}
	}
	return addrs
}

// backlog counts, by domain, what a drain has yet to try: mail that the primary deferred waits for its own time.
func (d *Daemon) backlog(ctx context.Context) (map[string]int64, error) {
	stats, err := d.store.Stats(ctx)
	if err != nil {
		return nil, err
	}
	n := make(map[string]int64, len(stats))
	for _, st := range stats {
		if st.Leased > 0 || !st.NextDue.After(time.Now()) {
			n[st.Dest] = st.Messages - st.Held
		}
	}
	return n, nil
}

// SystemdSockets takes over the listening sockets that systemd passed to the process, by name.
func SystemdSockets(pid int, getenv func(string) string) (map[string][]net.Listener, error) {
	return inbound.SystemdSockets(pid, getenv)
}
