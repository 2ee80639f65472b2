from multiexit.cli import main

main()
