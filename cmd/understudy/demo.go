package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/spf13/cobra"

	"understudy/internal/admin"
	"understudy/internal/config"
	"understudy/internal/daemon"
)

func (a *app) demoCmd() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Play an outage on loopback: half a minute, nothing to set up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			return a.demo(ctx, verbose)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the server's own log as well")
	return cmd
}

// play is the stage of the demonstration: one understudy, one primary, one sender.
type play struct {
	out     io.Writer
	begun   time.Time
	primary *demoPrimary
	smtp    string // where the understudy takes mail
	admin   *admin.Client
}

const demoOutageMail = 20

func (a *app) demo(ctx context.Context, verbose bool) error {
	dir, err := os.MkdirTemp("", "understudy-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	primary, err := newDemoPrimary()
	if err != nil {
		return err
	}
	defer primary.stop()
	log := slog.New(slog.DiscardHandler)
	if verbose {
		log = newLogger(a.err, config.LogText, new(slog.LevelVar))
	}
	d, err := daemon.Open(ctx, daemon.Options{
		Load: func() (*config.Config, error) { return demoConfig(dir, primary.addr) }, Version: version(), Log: log, Level: new(slog.LevelVar),
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	p := &play{
		out: a.out, begun: time.Now(), primary: primary, smtp: d.SMTPAddrs()[0].String(),
		admin: admin.NewClient(filepath.Join(dir, "admin.sock"), ""),
	}
	err = p.run(ctx)
	stop()
	return errors.Join(err, <-ended)
}

// demoConfig is what an operator would write, with default settings throughout.
func demoConfig(dir, primary string) (*config.Config, error) {
	return config.Parse("demo", []byte(strings.NewReplacer("DIR", dir, "PRIMARY", primary).Replace(`
hostname: mx2.example.org
domains:
  example.org: {accept_all: true, primaries: ["PRIMARY"]}
inbound: {listen: ["127.0.0.1:0"]}
admin: {socket: "DIR/admin.sock"}
spool: {dir: "DIR/spool"}
`)))
}

// run is the timeline: up, away, mail meanwhile, back, delivered.
func (p *play) run(ctx context.Context) error {
	p.say("understudy is the backup MX of example.org; it listens on %s", p.smtp)
	if err := p.primary.start(); err != nil {
		return err
	}
	p.say("the primary is up at %s", p.primary.addr)
	if err := p.untilState(ctx, "up"); err != nil {
		return err
	}
	if err := p.normalDay(ctx); err != nil {
		return err
	}
	p.primary.stop()
	p.say("THE PRIMARY GOES AWAY")
	if err := p.mail(demoOutageMail); err != nil {
		return err
	}
	p.say("mail goes on arriving: %d messages, each answered \"250 … queued\", each on disk", demoOutageMail)
	if err := p.untilState(ctx, "down"); err != nil {
		return err
	}
	st, err := p.admin.Status(ctx)
	if err != nil {
		return err
	}
	p.say("understudy knows: the primary is down (%s); %d messages wait", st.Primaries[0].Cause, st.Domains[0].Messages)
	p.say("… the outage goes on for five seconds; it could be a week …")
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	return p.recovery(ctx)
}

// normalDay shows one message on its way through while the primary is up.
func (p *play) normalDay(ctx context.Context) error {
	before := p.primary.count()
	sent := time.Now()
	if err := p.mail(1); err != nil {
		return err
	}
	at, err := p.primary.await(ctx, before+1)
	if err != nil {
		return err
	}
	p.say("a message arrives and is handed to the primary %d ms later", at.Sub(sent).Milliseconds())
	return pause(ctx, time.Second)
}

// recovery brings the primary back and measures from that moment.
func (p *play) recovery(ctx context.Context) error {
	before := p.primary.count()
	if err := p.primary.start(); err != nil {
		return err
	}
	back := time.Now()
	p.say("THE PRIMARY IS BACK")
	first, err := p.primary.await(ctx, before+1)
	if err != nil {
		return err
	}
	p.say("the first message is delivered, %d ms after recovery", first.Sub(back).Milliseconds())
	last, err := p.primary.await(ctx, before+demoOutageMail)
	if err != nil {
		return err
	}
	p.say("all %d are delivered, %d ms after recovery", demoOutageMail, last.Sub(back).Milliseconds())
	if err := p.untilEmpty(ctx); err != nil {
		return err
	}
	p.say("the queue is empty: %d taken, %d delivered, none lost, none twice", demoOutageMail, p.primary.count()-before)
	return nil
}

func (p *play) say(format string, args ...any) {
	fmt.Fprintf(p.out, "%6.1f s  %s\n", time.Since(p.begun).Seconds(), fmt.Sprintf(format, args...))
}

// mail sends n messages to the understudy over one connection.
func (p *play) mail(n int) error {
	c, err := smtp.Dial(p.smtp)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Hello("client.example.net"); err != nil {
		return err
	}
	for i := range n {
		body := fmt.Sprintf("From: alice@example.net\r\nTo: bob@example.org\r\nSubject: message %d\r\n\r\nHello Bob.\r\n", i+1)
		if err := c.SendMail("alice@example.net", []string{"bob@example.org"}, strings.NewReader(body)); err != nil {
			return err
		}
	}
	return c.Quit()
}

// lookEvery is how often the play looks whether something came true.
const lookEvery = 5 * time.Millisecond

func (p *play) untilState(ctx context.Context, state string) error {
	return p.until(ctx, func(st admin.Status) bool { return len(st.Primaries) == 1 && st.Primaries[0].State == state })
}

func (p *play) untilEmpty(ctx context.Context) error {
	return p.until(ctx, func(st admin.Status) bool { return len(st.Domains) == 1 && st.Domains[0].Messages == 0 })
}

func (p *play) until(ctx context.Context, holds func(admin.Status) bool) error {
	for {
		st, err := p.admin.Status(ctx)
		if err != nil {
			return err
		}
		if holds(st) {
			return nil
		}
		if err := pause(ctx, lookEvery); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
