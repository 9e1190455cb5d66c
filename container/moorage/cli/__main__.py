import sys

from moorage.cli.app import main

sys.exit(main())
