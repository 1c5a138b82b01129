package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"understudy/internal/config"
	"understudy/internal/daemon"
)

func (a *app) serveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Take mail and hand it over; the main job",
		Long: "Take mail for the configured domains, keep it while their primaries are away, hand it over when they are back.\n" +
			"SIGTERM and SIGINT stop it in order, SIGHUP makes it read its configuration and lists again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context()) },
	}
}

// gcPercent halves what garbage may take beside the index of a large queue; GOGC in the environment overrules it.
const gcPercent = 50

func (a *app) serve(ctx context.Context) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	level := new(slog.LevelVar)
	cfg, err := a.load() // read for the log's format; Open reads it again
	if err != nil {
		return err
	}
	log := newLogger(a.err, cfg.Log.Format, level)
	if a.configPath() == "" {
		log.Warn("no configuration given: this is the embedded demonstration one, on loopback only")
	}
	sockets, err := daemon.SystemdSockets(os.Getpid(), os.Getenv)
	if err != nil {
		return err
	}
	d, err := daemon.Open(ctx, daemon.Options{
		Load: a.load, Version: version(), Log: log, Level: level, Sockets: sockets,
		Notify: serviceManager(os.Getenv("NOTIFY_SOCKET")),
	})
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-hup:
				d.Reload(ctx) // it logs what came of it
			case <-done:
				return
			}
		}
	}()
	return d.Run(ctx)
}

// newLogger writes text to a terminal and JSON to anything else, unless the configuration says which.
func newLogger(w interface{ Write([]byte) (int, error) }, format config.LogFormat, level slog.Leveler) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	f, isFile := w.(*os.File)
	onTerminal := isFile && term.IsTerminal(int(f.Fd()))
	if format == config.LogText || format == config.LogAuto && onTerminal {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// readable writes durations as people do, "1.5s": JSON would have nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().Round(time.Microsecond).String())
	}
	return a
}

// serviceManager speaks sd_notify(3) to the socket that systemd names; without one it is nil.
func serviceManager(socket string) func(string) {
	if socket == "" {
		return nil
	}
	return func(state string) {
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			return // nobody to tell
		}
		defer c.Close()
		fmt.Fprint(c, state)
	}
}
