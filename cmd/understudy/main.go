// Command understudy is a backup MX: it takes a domain's mail while the primary is away and hands it over within
// seconds of its return. See the README for a walk-through and `understudy help` for the commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"understudy/configs"
	"understudy/internal/admin"
	"understudy/internal/config"
)

// systemConfig is read when --config is not given and the file is there.
const systemConfig = "/etc/understudy/understudy.yaml"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}

// app is what every command shares: the streams and the flags that all of them know.
type app struct {
	out, err io.Writer
	config   string // path of the configuration; empty is the system's, or the embedded one
	admin    string // socket path or URL of the admin API; empty is the configuration's
	token    string // file with the token for a URL
	json     bool
}

// run is the program without the process around it. It returns the exit code: 0 all well, 1 the command did not
// succeed (its error is on stderr).
func run(ctx context.Context, args []string, out, errw io.Writer, getenv func(string) string) int {
	a := &app{out: out, err: errw}
	root := &cobra.Command{
		Use:           "understudy",
		Short:         "A backup MX that hands your mail over the moment your mail server is back",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version(),
	}
	root.SetVersionTemplate("understudy {{.Version}}\n")
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	f := root.PersistentFlags()
	f.StringVarP(&a.config, "config", "c", getenv("UNDERSTUDY_CONFIG"), "configuration `FILE` (default "+systemConfig+" if it is there, else the embedded demonstration one)")
	f.StringVar(&a.admin, "admin", getenv("UNDERSTUDY_ADMIN"), "admin `SOCKET` or URL (default: the configuration's)")
	f.StringVar(&a.token, "token-file", getenv("UNDERSTUDY_TOKEN_FILE"), "`FILE` with the bearer token for an admin URL")
	f.BoolVar(&a.json, "json", false, "print JSON, for programs")
	root.AddCommand(a.serveCmd(), a.checkCmd(), a.statusCmd(), a.queueCmd(), a.flushCmd(), a.reloadCmd(), a.probeCmd(),
		a.maintenanceCmd(), a.holdDrainCmd(), a.resumeCmd(), a.outagesCmd(), a.alarmsCmd(), a.recipientsCmd(), a.parityCmd(), a.spoolCmd(), a.demoCmd(), a.versionCmd())
	if err := root.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errSaid) {
			fmt.Fprintln(errw, "understudy:", err)
		}
		return 1
	}
	return 0
}

// errSaid ends a command with exit code 1 when it has already said why.
var errSaid = errors.New("said")

// configPath is the file to read, or "" for the embedded configuration.
func (a *app) configPath() string {
	if a.config != "" {
		return a.config
	}
	if _, err := os.Stat(systemConfig); !errors.Is(err, fs.ErrNotExist) {
		return systemConfig
	}
	return ""
}

// load reads the configuration.
func (a *app) load() (*config.Config, error) {
	path := a.configPath()
	if path == "" {
		return config.Parse("embedded configuration", configs.Default)
	}
	return config.Load(path)
}

// client connects to the daemon that --admin or the configuration names.
func (a *app) client() (*admin.Client, error) {
	if a.admin != "" {
		token, err := a.readToken()
		if err != nil {
			return nil, err
		}
		return admin.NewClient(a.admin, token), nil
	}
	cfg, err := a.load()
	if err != nil {
		return nil, err
	}
	return admin.NewClient(cfg.Admin.Socket, ""), nil
}

func (a *app) readToken() (string, error) {
	if a.token == "" {
		return "", nil
	}
	return admin.ReadToken(a.token)
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, "understudy", version())
			return err
		},
	}
}

// version is what the build knows of itself: the module's version, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if rev == "" {
		return "devel"
	}
	return "devel-" + rev + dirty
}
